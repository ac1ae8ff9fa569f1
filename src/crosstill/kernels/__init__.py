"""Loops that torch has no operation for, over numpy arrays: compiled with numba, without torch."""
