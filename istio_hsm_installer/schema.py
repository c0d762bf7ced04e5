"""From a YAML document to Options, every fault told at once; and the JSON Schema of it. Pure.

Schema, validation and template are all made from the fields of options.py.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from istio_hsm_installer import durations
from istio_hsm_installer.errors import ConfigError, Fault
from istio_hsm_installer.options import (
    ClusterOptions,
    Flavour,
    HsmOptions,
    ImageOptions,
    IstioOptions,
    Mode,
    Options,
    ReleaseOptions,
    VaultOptions,
)

API_VERSION = "istio-hsm/v1"
SECTIONS: Mapping[str, type] = {
    "cluster": ClusterOptions,
    "vault": VaultOptions,
    "hsm": HsmOptions,
    "images": ImageOptions,
    "istio": IstioOptions,
    "release": ReleaseOptions,
}
_NATIVE_SIDECARS = (1, 24)
_KV_VERSIONS = (1, 2)
_MAX_UNKNOWN = 20
"""Names told of those that no setting has."""

_MAX_QUOTED = 100
T = TypeVar("T")


def parse(document: Mapping[str, object], folder: Path) -> Options:
    """Return the options; ConfigError names every fault. Paths are taken from `folder`."""
    reader = _Reader(folder)
    reader.names("", document, [*SECTIONS, "apiVersion"])
    if document.get("apiVersion") != API_VERSION:
        reader.fault("apiVersion", f"it is not {API_VERSION}", f"write apiVersion: {API_VERSION}")
    sections: dict[str, Any] = {
        name: reader.section(name, document.get(name), kind) for name, kind in SECTIONS.items()
    }
    reader.finish()
    options = Options(**sections)
    reader.check_together(options)
    reader.finish()
    return options


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file."""
    sections = {name: _section_schema(kind) for name, kind in SECTIONS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "istio-hsm configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", *(n for n, s in sections.items() if s["required"])],
        "properties": {"apiVersion": {"const": API_VERSION}, **sections},
    }


def template() -> str:
    """Return a file to fill in: what is required with examples, the rest as comments."""
    lines = [f"apiVersion: {API_VERSION}"]
    for name, kind in SECTIONS.items():
        required = [entry for entry in fields(kind) if _is_required(entry)]
        lines += ["", f"{name}:"]
        for entry in fields(kind):
            mark = "" if entry in required else "# "
            about = " ".join(filter(None, (entry.metadata["about"], _unit(entry))))
            example = entry.metadata["example"] or _default_text(entry)
            lines.append(f"  {mark}{yaml_name(entry.name)}: {example}".rstrip() + f"  # {about}")
    return "\n".join(lines) + "\n"


def yaml_name(name: str) -> str:
    """Return `kvMount` for `kv_mount`."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


class _WrongError(Exception):
    """A value is wrong; where it stands is added by who asked for it."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.cause, self.hint = cause, hint


class _Reader:
    """Gathers the faults while the values are read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._faults: list[Fault] = []

    def fault(self, where: str, cause: str, hint: str) -> None:
        self._faults.append(Fault(where, cause, hint))

    def finish(self) -> None:
        if self._faults:
            raise ConfigError(self._faults)

    def names(self, where: str, document: Mapping[str, object], known: list[str]) -> None:
        unknown = [str(name)[:_MAX_QUOTED] for name in document if name not in known]
        for name in unknown[:_MAX_UNKNOWN]:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            self.fault(f"{where}{name}", "there is no such setting", hint)

    def section(self, name: str, value: object, kind: type[T]) -> T | None:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.fault(name, "it is not a mapping", f"write its settings indented below {name}:")
            return None
        before, values = len(self._faults), {}
        hints = get_type_hints(kind)
        known = {yaml_name(entry.name): entry for entry in fields(kind)}  # type: ignore[arg-type]  # a type of SECTIONS
        self.names(f"{name}.", value, list(known))
        for key, entry in known.items():
            where, given = f"{name}.{key}", value.get(key)
            if given is not None:
                try:
                    values[entry.name] = self._value(given, hints[entry.name], entry)
                except _WrongError as wrong:
                    self.fault(where, wrong.cause, wrong.hint)
            elif _is_required(entry):
                example = entry.metadata["example"]
                self.fault(where, "it is not set", f"{entry.metadata['about']}, such as {example}")
        return kind(**values) if len(self._faults) == before else None

    def _value(self, given: object, kind: Any, entry: Field[Any]) -> object:
        kind = _bare(kind)
        if get_origin(kind) is tuple:
            if not isinstance(given, list):
                raise _WrongError("it is not a list", "write one entry a line, after a dash")
            return tuple(self._value(item, get_args(kind)[0], entry) for item in given)
        if kind is int:
            if isinstance(given, int) and not isinstance(given, bool) and given > 0:
                return given
            raise _WrongError(f"{_shown(given)} is not a whole number above 0", "write digits")
        if not isinstance(given, str):
            hint = f'write it in quotes: "{_shown(given, str)}"'
            raise _WrongError(f"it is read as {type(given).__name__}, not as text", hint)
        if entry.metadata["pattern"] and not re.fullmatch(entry.metadata["pattern"], given):
            example = entry.metadata["example"] or f"what matches {entry.metadata['pattern']}"
            raise _WrongError(f"{_shown(given)} cannot be right", f"write {example}")
        return self._folder / given if kind is Path else _converted(given, kind)

    def check_together(self, options: Options) -> None:
        istio, vault = options.istio, options.vault
        if vault.kv_version not in _KV_VERSIONS:
            self.fault("vault.kvVersion", f"{vault.kv_version} is not known", "write 1 or 2")
        if not options.hsm_secret_path.startswith(f"{options.kv_mount}/"):
            self.fault(
                "vault.hsmSecretPath",
                f"{options.hsm_secret_path} is not in the mount {options.kv_mount}",
                f"write {options.kv_mount}/hsm, or set vault.kvMount",
            )
        if (options.mode is Mode.ASM) != (istio.flavour is Flavour.ASM):
            self.fault(
                "istio.mode",
                f"{options.mode} does not go with flavour {istio.flavour}",
                "asm with asm; ca-server, csr-signer or sealed with upstream",
            )
        if options.mode is Mode.CSR_SIGNER and istio.cert_signer is None:
            self.fault(
                "istio.certSigner",
                "it is not set, and mode csr-signer needs it",
                "write such as mesh.example.com/hsm",
            )
        if (istio.cert_signer or "").partition("/")[0].endswith("kubernetes.io"):
            self.fault(
                "istio.certSigner", "kubernetes.io belongs to Kubernetes", "take a domain of yours"
            )
        if istio.flavour is Flavour.UPSTREAM and options.istio_version < _NATIVE_SIDECARS:
            self.fault(
                "istio.version",
                f"{istio.version} cannot add native sidecars to istiod",
                "upstream needs 1.24 or newer",
            )
        if (options.release.archive is None) != (options.release.signature is None):
            self.fault(
                "release", "archive and signature go together", "set both, or none of the two"
            )


def _converted(given: str, kind: Any) -> object:
    if kind is timedelta:
        try:
            return durations.parse(given)
        except ValueError:
            raise _WrongError(
                f"{_shown(given)} is no duration", "write such as 768h or 1h30m"
            ) from None
    if issubclass(kind, StrEnum) and given not in list(kind):
        raise _WrongError(f"{_shown(given)} is not known", f"one of {', '.join(kind)}")
    return kind(given)


def _section_schema(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    entries = fields(kind)
    is_required = any(_is_required(entry) for entry in entries)
    return {
        "type": "object" if is_required else ["object", "null"],
        "additionalProperties": False,
        "required": [yaml_name(entry.name) for entry in entries if _is_required(entry)],
        "properties": {
            yaml_name(entry.name): {
                "description": " ".join(filter(None, (entry.metadata["about"], _unit(entry)))),
                **_value_schema(_bare(hints[entry.name]), entry.metadata["pattern"]),
            }
            for entry in entries
        },
    }


def _value_schema(kind: Any, pattern: str) -> dict[str, Any]:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _value_schema(get_args(kind)[0], pattern)}
    if kind is int:
        return {"type": "integer", "minimum": 1}
    if kind is timedelta:
        return {"type": "string", "pattern": durations.PATTERN}
    if issubclass(kind, StrEnum):
        return {"enum": [entry.value for entry in kind]}
    return {"type": "string", **({"pattern": pattern} if pattern else {})}


def _shown(given: object, form: Callable[[object], str] = repr) -> str:
    """Return what was given, cut; of a collection its kind, for aliases can make it immense."""
    if isinstance(given, str | bytes):
        return form(given[:_MAX_QUOTED])
    if isinstance(given, bool | float | date):
        return form(given)
    if isinstance(given, int) and given.bit_length() < _MAX_QUOTED:
        return form(given)
    return type(given).__name__


def _bare(kind: Any) -> Any:
    """Return the type without `| None`."""
    if isinstance(kind, UnionType):
        return next(part for part in get_args(kind) if part is not NoneType)
    return kind


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING


def _default_text(entry: Field[Any]) -> str:
    if isinstance(entry.default, timedelta):
        return durations.text(entry.default)
    if entry.default == ():
        return "[]"
    if isinstance(entry.default, str) and entry.default.replace(".", "").isdigit():
        return f'"{entry.default}"'
    return "" if entry.default is None else str(entry.default)


def _unit(entry: Field[Any]) -> str:
    return f"({entry.metadata['unit']})" if entry.metadata["unit"] else ""
