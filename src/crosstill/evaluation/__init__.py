"""Measures that need no shared tokenizer: bits per byte and the teacher divergence."""
