"""What can go wrong for an operator: a cause, and a hint that says what to do next."""


class InstallerError(Exception):
    """The base of every error that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(InstallerError):
    """A file or an option is not what it must be."""


class RefusedError(InstallerError):
    """What was asked would put a wrong certificate into the mesh."""
