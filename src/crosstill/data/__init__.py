"""Rows from files, and batches of rows paired between two tokenizers."""
