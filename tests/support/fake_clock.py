"""A clock that is wrong for one process, and can be put right while it runs (libfaketime)."""

from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = ("libfaketimeMT.so.1",)
_FOLDERS = ("/usr/lib/*/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")


@dataclass(frozen=True, slots=True)
class FakeClock:
    """The wall clock of the processes that run in its environment; their other clocks are true."""

    file: Path

    def set_ahead(self, hours: float) -> None:
        """Set it so many hours ahead of the true time, or behind when negative."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{hours * 3600:+.0f}\n")
        fresh.replace(self.file)

    def environment(self) -> dict[str, str]:
        """Return what a process needs to live by this clock."""
        return {
            "LD_PRELOAD": library_path(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def library_path() -> str:
    """Return libfaketime's path; a missing one fails, it never skips."""
    for folder in _FOLDERS:
        for name in _LIBRARIES:
            for path in sorted(Path("/").glob(f"{folder.lstrip('/')}/{name}")):
                return str(path)
    raise RuntimeError("libfaketime is not installed. Hint: apt-get install faketime")
