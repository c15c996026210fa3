"""The two exceptions that end a command with one line."""


class UsageError(ValueError):
    """An argument that cannot be used: one line that names it, says what it was and what it may be."""


class FailureError(RuntimeError):
    """Something went wrong that no other argument would have helped against: one line."""
