"""Who may connect, and what the front process is told. No secret is among it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class AllowList:
    """The local processes that may connect: one of the lists must know them."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    """Groups that the process is in, first or supplementary."""
    everyone: bool = False

    def admits(self, uid: int, gids: frozenset[int]) -> bool:
        """Tell whether a process may connect."""
        return self.everyone or uid in self.uids or not self.gids.isdisjoint(gids)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The files that TLS is served with, and the clients that are let in."""

    ca: Path
    """Roots of the clients' certificates."""
    certificate: Path
    key: Path
    allow: tuple[str, ...]
    """Exact names in a client's certificate, one of which must match."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What clients can cost."""

    connections: int = 1024
    """Of the socket, and as many of the port; handshakes included."""
    connections_each: int = 128
    """Of one uid, or of one identity."""
    handshakes_each: int = 64
    """At once, from one address."""
    handshake_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What the front process is started with; numbers of descriptors are inherited ones."""

    tag: str
    upstream: int
    """The gRPC server's socket file, opened as a path."""
    allow: AllowList
    unix: int | None
    tcp: int | None
    tls: TlsSettings | None
    as_json: bool
    """The log's format."""
    limits: FrontLimits = FrontLimits()

    def to_line(self) -> bytes:
        """Return the settings as one line."""
        return json.dumps(asdict(self), default=_plain).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Return what `to_line` wrote."""
        fields: dict[str, Any] = json.loads(line)
        allow, tls = fields["allow"], fields["tls"]
        fields["allow"] = AllowList(
            frozenset(allow["uids"]), frozenset(allow["gids"]), allow["everyone"]
        )
        if tls is not None:
            ca, certificate, key = (Path(tls[name]) for name in ("ca", "certificate", "key"))
            fields["tls"] = TlsSettings(ca, certificate, key, tuple(tls["allow"]))
        fields["limits"] = FrontLimits(**fields["limits"])
        return cls(**fields)


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value)
