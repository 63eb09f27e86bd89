"""The exceptions that carry a message for people."""


class DiffSegError(RuntimeError):
    """An error that the user can correct: the message says what was expected, what was found and what to do."""


class UsageError(DiffSegError):
    """An option that is missing or does not fit the inputs: a command line ends with status 2, "bad usage"."""
