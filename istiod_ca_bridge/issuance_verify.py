"""`log verify`: read issuance log files and say what they hold, or where they were changed."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography import x509

from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import ConfigError, TamperedLogError
from istiod_ca_bridge.issuance_chain import MAX_LINE_BYTES, Findings, Verifier, parsed
from istiod_ca_bridge.issuance_chain_name import worker_of
from istiod_ca_bridge.issuance_file import LOCK
from istiod_ca_bridge.signer import key_der


def verify_each(files: Iterable[Path], ca: Path | None) -> dict[int, Findings]:
    """Return what the files hold, by the worker that wrote them: each has a chain of its own.

    Two that begin with the same line are TamperedLogError: one stands in for the other.
    """
    chains: dict[int, list[Path]] = {}
    for path in _logs(files):
        chains.setdefault(worker_of(path), []).append(path)
    heads: dict[bytes, Path] = {}
    for paths in chains.values():
        oldest = min(paths, key=_first)
        head = next(iter(_lines(oldest)), b"")
        if heads.setdefault(head, oldest) != oldest:
            raise TamperedLogError(f"{oldest}:1: it is the log of another worker: {heads[head]}")
    return {worker: verify(paths, ca) for worker, paths in sorted(chains.items())}


def verify(files: Iterable[Path], ca: Path | None) -> Findings:
    """Return what the files of one log hold, in whatever order they are named.

    `ca`: certificates whose keys may sign checkpoints. TamperedLogError names the first fault.
    """
    verifier = Verifier(_keys(ca) if ca else [])
    for path in sorted(_logs(files), key=_first):
        verifier.follow(str(path), _lines(path))
    return verifier.findings


def certificates(files: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield serial, identity and end of each workload certificate; nothing is verified."""
    for path in files:
        for raw in _lines(path):
            line = parsed(raw.removesuffix(b"\n"))
            if line is not None and "identity" in line.facts:
                serial, holder, ends = (
                    str(line.facts.get(name)) for name in ("serial", "identity", "not_after")
                )
                yield serial, holder, ends


def _keys(path: Path) -> list[bytes]:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
        return [key_der(entry.public_key()) for entry in certificates]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except MALFORMED:
        raise ConfigError(f"{path} holds no certificates in PEM") from None


def _logs(files: Iterable[Path]) -> list[Path]:
    """Return the files without the lock of one of them, which `issued.log*` names too."""
    named = list(files)
    locks = {Path(f"{path}{LOCK}") for path in named}
    return [path for path in named if path not in locks]


def _first(path: Path) -> int:
    for raw in _lines(path):
        line = parsed(raw.removesuffix(b"\n"))
        if line is None:
            break
        return line.seq
    raise TamperedLogError(f"{path}:1: it is no whole line of an issuance log")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
