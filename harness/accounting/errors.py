"""The one exception that means misuse."""


class UsageError(ValueError):
    """An argument that cannot be used: one line that names it, says what it was and what it may be."""
