"""Who is behind a call, read from the name that the front gave to the call's connection.

The front (hsm_plugin.front) asks the kernel or TLS who a client is, and binds its own end of the
connection to the gRPC server to an abstract address that says so. gRPC reports that address as
the call's peer. Only the front knows the tag in it and only the front can reach the server, so
a name with the tag is true, and one without it is a stranger's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hsm_plugin.errors import StrangerError

_SCHEME = "unix-abstract:"
_LOCAL = "l"
_REMOTE = "r"


class CallerKind(Enum):
    """How it is known who calls."""

    UNKNOWN = "unknown"
    """There is no front: whoever may open the Unix socket."""
    LOCAL = "local"
    """A process of this machine; the kernel told its ids (SO_PEERCRED)."""
    REMOTE = "remote"
    """A client over TCP; its certificate names it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The client behind a call."""

    kind: CallerKind
    client: str = ""
    """What its calls have in common, for taking turns: see hsm_plugin.admission."""
    pid: int | None = None
    """0: a process of another container, whose id the kernel does not tell."""
    uid: int | None = None
    gid: int | None = None
    identity: str = ""
    """Of a remote client: the entry of the allow-list that its certificate matched."""

    def fields(self) -> dict[str, str | int]:
        """Return what is known, as a log or a record has it."""
        known = {"pid": self.pid, "uid": self.uid, "gid": self.gid, "identity": self.identity}
        return {"kind": self.kind.value} | {
            name: value for name, value in known.items() if value is not None and value != ""
        }


ANYONE = Caller(CallerKind.UNKNOWN)
_STRANGER: Mapping[str, str | int] = {"kind": "stranger"}


class Callers:
    """Reads the names of one front; without a tag there is none, and everyone is ANYONE."""

    def __init__(self, tag: str = "", identities: Sequence[str] = ()) -> None:
        self._prefix = f"{_SCHEME}{tag}/" if tag else ""
        self._identities = tuple(identities)

    def fields_of(self, peer: str) -> Mapping[str, str | int]:
        """Return who is behind a peer name, for a log or a record; a stranger is called that."""
        try:
            return self.of(peer).fields()
        except StrangerError:
            return _STRANGER

    def behind(self, peer: Callable[[], str]) -> Caller:
        """Return who is behind the name that `peer` tells; without a front it is not asked."""
        return self.of(peer()) if self._prefix else ANYONE

    def of(self, peer: str) -> Caller:
        """Return who is behind a peer name of gRPC; StrangerError for one not of the front."""
        if not self._prefix:
            return ANYONE
        if not peer.startswith(self._prefix):
            raise StrangerError(
                "the call came past the front that knows who calls",
                hint="connect to the socket or the port that the plugin's log names",
            )
        nonce, kind, *fields = peer.removeprefix(self._prefix).split("/")
        if kind == _REMOTE:
            identity = self._identities[int(fields[0])]
            return Caller(CallerKind.REMOTE, client=identity, identity=identity)
        pid, uid, gid = map(int, fields)
        # Processes of other containers all have pid 0: only their connections tell them apart.
        client = f"{uid}/{pid or nonce}"
        return Caller(CallerKind.LOCAL, client=client, pid=pid, uid=uid, gid=gid)


def local_address(tag: str, nonce: str, *, pid: int, uid: int, gid: int) -> str:
    """Return the abstract address of a local client's connection."""
    return f"\0{tag}/{nonce}/{_LOCAL}/{pid}/{uid}/{gid}"


def remote_address(tag: str, nonce: str, identity: int) -> str:
    """Return the abstract address of a remote client's connection; `identity` is an index."""
    return f"\0{tag}/{nonce}/{_REMOTE}/{identity}"
