"""The parts of `examples/demo.py`: where the prose, the tokenizer and the teacher come from."""
