"""What can go wrong for an operator: a cause, and a hint that says what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class InstallerError(Exception):
    """The base of every error that this package raises on purpose."""

    kind: ClassVar[str] = "failed"
    """A word for programs, the same for ever."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ManyErrors(InstallerError):  # noqa: N818 - several errors at once
    """Several things are wrong; each is told with its own hint."""

    kind = "many"

    def __init__(self, errors: Sequence[InstallerError]) -> None:
        super().__init__("; ".join(map(str, errors)), hint=errors[0].hint)
        self.errors = tuple(errors)


class InputError(InstallerError):
    """A file or an option is not what it must be."""

    kind = "input"


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake of a configuration."""

    where: str
    cause: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}"


class ConfigError(ManyErrors):
    """A configuration has faults; all of them are told."""

    kind = "config"

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__([InputError(str(fault), hint=fault.hint) for fault in faults])
        self.faults = tuple(faults)


class RefusedError(InstallerError):
    """What was asked would put a wrong certificate into the mesh, or take what is another's."""

    kind = "refused"


class StateError(InstallerError):
    """The state file cannot be trusted for this run."""

    kind = "state"


class KubeError(InstallerError):
    """The Kubernetes API refused or could not be reached."""

    kind = "kubernetes"


class KubeUnreachableError(KubeError):
    """There is no API server to ask: nothing more can be learnt from it."""

    kind = "kubernetes-unreachable"


class VaultError(InstallerError):
    """Vault refused or could not be reached."""

    kind = "vault"


class VaultForbiddenError(VaultError):
    """Vault answers 403: the token may not do this, or is no token of this Vault."""

    kind = "vault-forbidden"


class VaultRejectedError(VaultError):
    """Vault answers 400: not so, or not yet."""

    kind = "vault-rejected"


class ToolError(InstallerError):
    """A program that this one starts is missing or failed."""

    kind = "tool"


class ToolMissingError(ToolError):
    """A program is not installed: a person must run what it would have done."""

    kind = "tool-missing"


class PluginError(ToolError):
    """The HSM plugin refused; `code` is its gRPC status, empty when it gave none."""

    kind = "plugin"

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class WaitError(InstallerError):
    """What was awaited did not come in time; the message says what it was."""

    kind = "timeout"
