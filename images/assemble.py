"""Makes /opt/istio-hsm of one image: a virtual environment with one program and nothing else.

Runs in the build stage of the Dockerfiles, with the base's own Python and pip:
`python3 images/assemble.py NAME`. What NAME holds is said in images/NAME/image.toml. Two runs on
the same sources and the same SOURCE_DATE_EPOCH give the same bytes.
"""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sbom

PREFIX = Path("/opt/istio-hsm")
"""Where the programs are, in all images."""

_SOURCE = Path(__file__).resolve().parent.parent
_BASE_PACKAGES = Path("/tmp/dpkg-status")  # noqa: S108 - the build stage's own, put there by COPY
_BUILD_TOOLS = ("hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers")
_PIP = ("--disable-pip-version-check", "--no-cache-dir", "-q")


@dataclass(frozen=True, slots=True)
class Image:
    """What one image holds."""

    name: str
    packages: tuple[str, ...]
    """Import names of our packages."""

    commands: tuple[str, ...]
    """Entry points that get a script."""

    requires: tuple[str, ...]
    """Distributions that our packages import; pip finds what these need in turn."""


def main(arguments: Sequence[str]) -> None:
    """Leave the image's files in PREFIX."""
    image = read_image(arguments[0])
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = slim(_build_wheel(folder), image, folder)
        locked = _download(_SOURCE / "requirements/runtime.lock", folder / "runtime")
        report = folder / "report.json"
        _install(PREFIX, locked, [*image.requires, str(wheel)], report)
        wheels = {path.name: _sha256(path) for path in (wheel, *locked.glob("*.whl"))}
        bill = sbom.document(
            image.name,
            json.loads(report.read_text()),
            wheels,
            _BASE_PACKAGES.read_text() if _BASE_PACKAGES.exists() else "",
            epoch,
        )
    (PREFIX / "sbom.cdx.json").write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")
    _compile(PREFIX)
    _settle(PREFIX, epoch)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_image(name: str) -> Image:
    """Return what images/<name>/image.toml says."""
    table = tomllib.loads((_SOURCE / "images" / name / "image.toml").read_text())
    return Image(name, tuple(table["packages"]), tuple(table["commands"]), tuple(table["requires"]))


def slim(wheel: Path, image: Image, folder: Path) -> Path:
    """Return our wheel with this image's packages, entry points and dependencies alone."""
    target = folder / "slim" / wheel.name
    target.parent.mkdir()
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as result:
        record: list[tuple[str, str, str]] = []
        for name, data in _kept(source, image):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append((name, f"sha256={digest}", str(len(data))))
            result.writestr(zipfile.ZipInfo(name), data)
        record_name = next(name for name in source.namelist() if name.endswith("/RECORD"))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*record, (record_name, "", "")])
        result.writestr(zipfile.ZipInfo(record_name), text.getvalue())
    return target


def _kept(source: zipfile.ZipFile, image: Image) -> Iterator[tuple[str, bytes]]:
    for name in sorted(source.namelist()):
        top, _, rest = name.partition("/")
        data = source.read(name)
        if rest == "RECORD" or not (top in image.packages or top.endswith(".dist-info")):
            continue
        if rest == "entry_points.txt":
            kept = [
                line
                for line in data.decode().splitlines()
                if line.startswith("[") or line.partition("=")[0].strip() in image.commands
            ]
            data = ("\n".join(kept) + "\n").encode()
        elif rest == "METADATA":
            head, blank, body = data.decode().partition("\n\n")
            lines = [line for line in head.split("\n") if not line.startswith("Requires-Dist:")]
            lines += [f"Requires-Dist: {requirement}" for requirement in image.requires]
            data = ("\n".join(lines) + blank + body).encode()
        yield name, data


def _build_wheel(folder: Path) -> Path:
    """Return the wheel of the whole distribution, built by the locked build tools."""
    lock = folder / "tools.lock"
    lock.write_text(_lines_of(_SOURCE / "requirements/dev.lock", _BUILD_TOOLS))
    tools = folder / "tools"
    _install(tools, _download(lock, folder / "tool-wheels"), _BUILD_TOOLS, folder / "tools.json")
    target = folder / "dist"
    _run(tools / "bin/python", "-m", "hatchling", "build", "-t", "wheel", "-d", target)
    [wheel] = target.glob("*.whl")
    return wheel


def _lines_of(lock: Path, names: Sequence[str]) -> str:
    """Return the lock's entries for these names; each must be there."""
    entries: dict[str, list[str]] = {}
    name = ""
    for line in lock.read_text().splitlines():
        if line and not line[0].isspace():
            name = line.partition("==")[0]
        entries.setdefault(name, []).append(line)
    missing = set(names) - set(entries)
    if missing:
        sys.exit(f"error: {lock} has no {', '.join(sorted(missing))}\nhint: run `make lock`")
    return "".join("\n".join(entries[name]) + "\n" for name in names)


def _download(lock: Path, target: Path) -> Path:
    """Return a folder with the lock's wheels, each checked against its hash."""
    _run(
        *(sys.executable, "-m", "pip", "download", *_PIP, "--require-hashes", "--no-deps"),
        *("--only-binary", ":all:", "-r", lock, "-d", target),
    )
    return target


def _install(prefix: Path, wheels: Path, wanted: Sequence[str], report: Path) -> None:
    """Make a virtual environment with `wanted` and what it needs, from checked wheels alone."""
    _run(sys.executable, "-m", "venv", "--without-pip", prefix)
    _run(
        *(sys.executable, "-m", "pip", "--isolated", "--python", prefix / "bin/python"),
        *("install", *_PIP, "--no-index", "--find-links", wheels, "--no-compile"),
        *("--report", report, *wanted),
    )
    for script in prefix.glob("bin/[aA]ctivate*"):
        script.unlink()


def _compile(prefix: Path) -> None:
    """Write byte code that is never checked against its source: the file system is read-only."""
    _run(
        *(prefix / "bin/python", "-m", "compileall", "-q", "-j", "1"),
        *("--invalidation-mode", "unchecked-hash", prefix / "lib"),
    )


def _settle(prefix: Path, epoch: int) -> None:
    """Let nothing depend on when, where or by whom it was built."""
    for path in [prefix, *prefix.rglob("*")]:
        if path.name == "direct_url.json":
            path.unlink()
            continue
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    for record in prefix.glob("lib/*/site-packages/istio_hsm-*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if "/direct_url.json," not in line))
    for path in [*prefix.rglob("*"), prefix]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _run(*command: object) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    shown = [str(part) for part in command]
    if subprocess.run(shown, cwd=_SOURCE, env=environment, check=False).returncode != 0:
        shutil.rmtree(PREFIX, ignore_errors=True)
        sys.exit(f"error: `{' '.join(shown)}` failed\nhint: its own words are above")


if __name__ == "__main__":
    main(sys.argv[1:])
