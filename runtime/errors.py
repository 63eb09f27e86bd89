"""The one exception type that carries a message for people."""


class DiffSegError(RuntimeError):
    """Something a person can mend: the message says what was expected, what was found and what to do."""
