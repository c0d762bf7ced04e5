"""Regenerates the typed stubs beside the .proto sources; `--check` only compares.

Exit code 1 when `--check` finds a difference.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = "istio_hsm_proto"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = _generate(Path(folder))
        if arguments.check:
            return _compare(made)
        for path in made:
            shutil.copyfile(path, ROOT / PACKAGE / path.name)
    return 0


def _generate(target: Path) -> list[Path]:
    well_known = str(resources.files("grpc_tools") / "_proto")
    sources = sorted(str(path) for path in (ROOT / PACKAGE).glob("*.proto"))
    scripts = Path(sys.executable).parent
    code: int = protoc.main(  # type: ignore[no-untyped-call] # grpc_tools has no types
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *sources,
        ]
    )
    if code != 0:
        raise SystemExit(code)
    return sorted((target / PACKAGE).iterdir())


def _compare(made: list[Path]) -> int:
    kept = {path.name for path in (ROOT / PACKAGE).glob("*_pb2*")}
    stale = sorted(
        kept.symmetric_difference(path.name for path in made)
        | {
            path.name
            for path in made
            if path.name in kept
            and not filecmp.cmp(path, ROOT / PACKAGE / path.name, shallow=False)
        }
    )
    for name in stale:
        sys.stderr.write(f"error: {PACKAGE}/{name} differs from its .proto source\n")
    if stale:
        sys.stderr.write("hint: run `make proto` and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
