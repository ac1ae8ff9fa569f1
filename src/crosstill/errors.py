"""Every error a user can cause, one class for each remedy.

A message says what was expected, what came, where, and what to do. The command line prints it as
one line and leaves with `exit_code`.
"""


class CrosstillError(Exception):
    """Base of all errors that crosstill raises on purpose."""

    exit_code = 2


class ConfigError(CrosstillError):
    """A recipe, a flag or an argument is wrong: change it and run again."""


class DataError(CrosstillError):
    """A row or a file of data is wrong: mend the data, or allow bad rows to be skipped."""

    exit_code = 3


class TokenizerError(CrosstillError):
    """A tokenizer cannot be read as bytes: use another, or its fast version."""


class AlignmentError(CrosstillError):
    """Two tokenizations do not spell the same text."""

    exit_code = 3


class NumericsError(CrosstillError):
    """A loss or a gradient is not finite; nothing was updated."""

    exit_code = 4


class CheckpointError(CrosstillError):
    """A checkpoint or a model folder is incomplete, damaged or of another run."""


class TrustError(CrosstillError):
    """A model or a data set asks for code or file formats that are not trusted."""


class RemoteTeacherError(CrosstillError):
    """A teacher behind an API did not answer as expected."""

    exit_code = 3
