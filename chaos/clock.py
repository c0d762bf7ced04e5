"""A wall clock that is wrong for one process, and can be moved while it runs."""

import mmap
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_SOURCE = Path(__file__).with_name("skewed_clock.c")
_FORMAT = "=q"


@dataclass(frozen=True, slots=True)
class SkewedClock:
    """The clock of the processes that run in its environment."""

    library: Path
    file: Path
    _memory: mmap.mmap = field(repr=False)

    def set_ahead(self, seconds: int) -> None:
        """Set it so far ahead of the true time, or behind when negative."""
        struct.pack_into(_FORMAT, self._memory, 0, seconds)

    def environment(self) -> dict[str, str]:
        """Return what a process needs to live by this clock."""
        return {"LD_PRELOAD": str(self.library), "SKEWED_CLOCK": str(self.file)}


def make_clock(library: Path, file: Path) -> SkewedClock:
    """Return a clock that is right as yet."""
    size = struct.calcsize(_FORMAT)
    file.write_bytes(bytes(size))
    with file.open("r+b") as opened:
        return SkewedClock(library, file, mmap.mmap(opened.fileno(), size))


def build_library(folder: Path) -> Path:
    """Return the library that moves clocks, built anew."""
    library = folder / "skewed-clock.so"
    subprocess.run(
        [
            *("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *("-o", str(library), str(_SOURCE), "-ldl"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return library
