"""What is installed is what is locked, by hash, from an index, under a licence that we may ship."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_LOCKS = ("runtime", "dev")
_PINNED = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[0-9][0-9A-Za-z.+!-]*)(?P<marker> ; [^\\]+?)?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)"
)
_SHIPPABLE = {
    *("MIT", "MIT-0", "MIT License", "Apache-2.0", "Apache License 2.0"),
    *("Apache Software License", "BSD-2-Clause", "BSD-3-Clause", "BSD License"),
    *("3-Clause BSD License", "ISC License (ISCL)", "PSF-2.0"),
    *("Python Software Foundation License", "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
    "Unlicense",
}
"""Of what goes into the images. MPL-2.0 binds changed files of the package alone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One locked package."""

    name: str
    version: str
    marker: str
    hashes: int


def entries(lock: str) -> Iterator[Entry]:
    """Yield what is locked; ValueError, with the line, for anything but a pin with its hashes."""
    rest = lock
    while rest:
        match = _PINNED.match(rest)
        if match is None or not rest[match.end() :].startswith("\n"):
            raise ValueError(rest.partition("\n")[0])
        marker = (match["marker"] or "").removeprefix(" ; ").strip()
        yield Entry(match["name"], match["version"], marker, match["hashes"].count("--hash"))
        rest = rest[match.end() + 1 :]


def locked(name: str) -> dict[str, Entry]:
    text = (_ROOT / "requirements" / f"{name}.lock").read_text()
    return {entry.name: entry for entry in entries(text)}


def licences(package: metadata.PackageMetadata) -> set[str]:
    """Return what the package may be used under; all parts of an AND, one of an OR."""
    told = {name: package[name] for name in package if name.startswith("License")}
    if expression := told.get("License-Expression"):
        parts = re.split(r" AND ", expression)
        return {next((p for p in part.split(" OR ") if p in _SHIPPABLE), part) for part in parts}
    classifiers = package.get_all("Classifier") or []
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    return set(named) or {told.get("License", "none")}


@pytest.mark.parametrize("name", _LOCKS)
def test_every_entry_is_one_version_with_its_hashes(name: str) -> None:
    assert len(locked(name)) > 20
    assert all(entry.hashes for entry in locked(name).values())


@pytest.mark.parametrize(
    "line",
    [
        "requests==2.32.0\n",
        "requests>=2.32 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "requests @ https://files.test/requests.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "git+https://host.test/requests\n",
        "-e .\n",
        "--index-url https://index.test/simple\n",
        "--extra-index-url https://index.test/simple\n",
        "--find-links /wheels\n",
        "requests==2.32.0 \\\n    --hash=md5:" + "0" * 32 + "\n",
        "requests==2.32.0 \\\n    --hash=sha256:" + "0" * 63 + "\n",
    ],
)
def test_anything_else_in_a_lock_is_seen(line: str) -> None:
    sound = "idna==3.10 \\\n    --hash=sha256:" + "a" * 64 + "\n"
    assert [entry.name for entry in entries(sound)] == ["idna"]
    with pytest.raises(ValueError, match=re.escape(line.partition("\n")[0])):
        list(entries(sound + line))


def test_development_runs_on_the_versions_that_ship() -> None:
    development = locked("dev")
    different = {
        name: entry
        for name, entry in locked("runtime").items()
        if name not in development or development[name].version != entry.version
    }
    assert different == {}


def test_what_is_declared_is_locked() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    declared = {
        "runtime": project["project"]["dependencies"],
        "dev": project["dependency-groups"]["dev"],
    }
    for name, requirements in declared.items():
        names = {re.split(r"[<>=\[ ;]", entry)[0].lower() for entry in requirements}
        assert names - set(locked(name)) == set()


def test_what_is_installed_here_is_what_is_locked() -> None:
    for entry in locked("dev").values():
        if not entry.marker:
            assert metadata.version(entry.name) == entry.version


def test_what_ships_is_under_a_licence_that_lets_it() -> None:
    found = {}
    for entry in locked("runtime").values():
        if not entry.marker and (odd := licences(metadata.metadata(entry.name)) - _SHIPPABLE):
            found[entry.name] = odd
    assert found == {}


def test_a_licence_that_does_not_is_seen() -> None:
    assert licences(metadata.metadata("pygal")) - _SHIPPABLE
