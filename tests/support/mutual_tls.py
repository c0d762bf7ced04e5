"""Two workloads shake hands as sidecars do: each shows its chain, each checks by its own roots."""

import ssl
from pathlib import Path
from typing import Protocol

_TURNS = 10


class Holder(Protocol):
    """A workload's key and the CA's answer: leaf, intermediates, roots last."""

    @property
    def chain(self) -> tuple[str, ...]: ...

    @property
    def key_pem(self) -> bytes: ...


def handshake(server: Holder, client: Holder, folder: Path) -> str | None:
    """Return why the handshake failed; None when both took the other's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        _context(client, ssl.PROTOCOL_TLS_CLIENT, folder).wrap_bio(to_client, to_server),
        _context(server, ssl.PROTOCOL_TLS_SERVER, folder).wrap_bio(
            to_server, to_client, server_side=True
        ),
    ]
    for _ in range(_TURNS):
        waiting = []
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(end)
            except ssl.SSLError as error:
                return str(error)
        if not waiting:
            return None
    return "it never ended"


def _context(holder: Holder, protocol: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=holder.chain[-1])
    path = folder / "handshake.pem"
    path.write_bytes("".join(holder.chain[:-1]).encode() + holder.key_pem)
    context.load_cert_chain(path)
    path.unlink()
    return context
