"""A support bundle: gathered from the list, written, looked through, and only then kept.

It fails closed: when a secret is found in it, or when anything else goes wrong, no bundle stays.
"""

import gzip
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from istio_hsm_installer import canaries, config, dump
from istio_hsm_installer.canaries import Known
from istio_hsm_installer.errors import InputError, InstallerError
from istio_hsm_installer.files import read_file
from istio_hsm_installer.installation import Installation, when
from istio_hsm_installer.objects import Ref, name_of
from istio_hsm_installer.options import HsmOptions
from istio_hsm_installer.status import happening

_LOG_LINES = 5000
_LOG_BYTES = 4 << 20
_MAX_BYTES = 128 << 20
_EVENTS = 200
_PRIVATE = ("token", "tls.key", "encrypted-skey", "ca-key.pem", "key.pem")
"""Keys of Secrets whose values are looked for in the bundle."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A file of the bundle that holds a secret."""

    file: str
    kinds: Sequence[str]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The files of a bundle, and the secrets that must not be in them."""

    files: Mapping[str, bytes]
    known: Collection[Known]
    failures: Sequence[str]
    """What could not be taken, and why."""


def gather(installation: Installation, vault_token: config.Secret | None) -> Gathered:
    """Return what is on the list; a part that cannot be read is told and left out."""
    files: dict[str, bytes] = {}
    known = list(_configured(installation.options.hsm, vault_token))
    failures: list[str] = []
    parts: Mapping[str, Callable[[], Mapping[str, bytes]]] = {
        "about.json": lambda: {"about.json": dump.as_file(_about(installation))},
        "config.json": lambda: {"config.json": dump.as_file(dump.settings(installation.options))},
        "pods": lambda: _pods(installation),
        "events": lambda: {"events.json": dump.as_file(_events(installation))},
        "configmaps": lambda: _config_maps(installation),
        "secrets": lambda: _secrets(installation, known),
    }
    for name, take in parts.items():
        try:
            files |= take()
        except InstallerError as error:
            failures.append(f"{name}: {error}")
    if failures:
        files["left-out.json"] = dump.as_file(failures)
    if sum(map(len, files.values())) > _MAX_BYTES:
        raise InputError(
            f"the bundle would hold more than {_MAX_BYTES >> 20} MiB",
            hint="leave logs out with --leave-out",
        )
    return Gathered(files, known, failures)


def write(gathered: Gathered, target: Path) -> Sequence[Leak]:
    """Return the files that hold secrets; without any, the bundle is at the target, mode 0600."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror}", hint="check its folder"
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            _archive(gathered.files, file)
            file.flush()
            os.fsync(file.fileno())
        leaks = _looked_through(Path(partial), gathered.known)
        if not leaks:
            Path(partial).replace(target)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{target} cannot be written: {type(error).__name__}", hint="check its disk"
        ) from None
    finally:
        Path(partial).unlink(missing_ok=True)
    return leaks


def _archive(files: Mapping[str, bytes], out: io.BufferedWriter) -> None:
    with (
        gzip.GzipFile(fileobj=out, mode="wb", filename="") as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"istio-hsm-sysdump/{name}")
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))


def _looked_through(path: Path, known: Collection[Known]) -> Sequence[Leak]:
    """Return the leaks, read from the bundle itself: what was written is what counts."""
    leaks = []
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            reader = archive.extractfile(entry)
            content = reader.read() if reader else b""
            kinds = canaries.find(entry.name.encode() + b"\n" + content, known)
            if kinds:
                leaks.append(Leak(entry.name.partition("/")[2], kinds))
    return leaks


def _about(installation: Installation) -> Mapping[str, object]:
    return {
        "istio-hsm": version("istio-hsm"),
        "python": sys.version.split()[0],
        "kubernetes": installation.cluster.version(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": asdict(installation.key()),
    }


def _pods(installation: Installation) -> Mapping[str, bytes]:
    pods = installation.pods()
    files = {"pods.json": dump.as_file([dump.pod(entry) for entry in pods])}
    for entry in pods:
        ref = Ref("Pod", name_of(entry), installation.namespace)
        for container, restarted in dump.wanted_logs(entry):
            for previous in (False, True) if restarted else (False,):
                text = installation.cluster.last_log(
                    ref, container, _LOG_LINES, _LOG_BYTES, previous=previous
                )
                if text is not None:
                    name = f"{container}.previous" if previous else container
                    files[f"logs/{ref.name}/{name}.log"] = text.encode()
    return files


def _events(installation: Installation) -> Sequence[object]:
    found = installation.events(_EVENTS)
    return [asdict(happening(event, when(event))) for event in found]


def _config_maps(installation: Installation) -> Mapping[str, bytes]:
    revision = installation.options.istio.revision
    names = (*dump.CONFIG_MAPS, f"istio-{revision}" if revision else "istio")
    found = {
        name: installation.cluster.read(Ref("ConfigMap", name, installation.namespace))
        for name in names
    }
    return {
        f"configmaps/{name}.json": dump.as_file(dump.config_map(entry))
        for name, entry in found.items()
        if entry is not None
    }


def _secrets(installation: Installation, known: list[Known]) -> Mapping[str, bytes]:
    digest_key = os.urandom(32)
    shown = []
    for namespace in (installation.namespace, installation.options.vault.reviewer_namespace):
        for entry in installation.cluster.list(Ref("Secret", "", namespace)):
            values = installation.values_of(entry)
            known += [
                Known(f"{key} of the Secret {name_of(entry)}", value)
                for key, value in values.items()
                if key in _PRIVATE
            ]
            shown.append({"namespace": namespace, **dump.secret(entry, values, digest_key)})
    return {"secrets.json": dump.as_file(shown)}


def _configured(hsm: HsmOptions, vault_token: config.Secret | None) -> Iterator[Known]:
    """Yield the secrets of the configuration, as far as they can be read here."""
    if vault_token is not None:
        yield Known("the Vault token", vault_token.reveal())
    for kind, path in (("the PIN", hsm.pin_file), ("the HSM client's key", hsm.client_key_file)):
        try:
            if path is not None and (value := read_file(path).strip()):
                yield Known(kind, value)
        except InstallerError:
            continue
