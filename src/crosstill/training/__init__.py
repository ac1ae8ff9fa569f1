"""Training: configuration, trainer, checkpoints and the run that the command line starts."""
