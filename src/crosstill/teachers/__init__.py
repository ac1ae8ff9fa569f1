"""Teachers: what a teacher says about a batch, and who says it."""
