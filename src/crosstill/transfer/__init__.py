"""Putting a model on another tokenizer: initial embeddings, and export."""
