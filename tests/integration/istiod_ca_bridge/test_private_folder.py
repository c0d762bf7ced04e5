"""What a killed bridge leaves in memory, and who clears it away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from istiod_ca_bridge.private_folder import private_folder
from tests.support.kube_process import dying_with_parent

_HOLD = """
import sys, time
from pathlib import Path
from istiod_ca_bridge.private_folder import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Return another process that has a folder there."""
    process = subprocess.Popen(
        dying_with_parent([sys.executable, "-c", _HOLD, str(parent)]),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_process_leaves_its_folder_and_the_next_one_clears_it_away(
    tmp_path: Path,
) -> None:
    process, left = holder(tmp_path)
    end(process)
    assert (left / "socket").exists()

    with private_folder(tmp_path) as own:
        assert not left.exists()
        assert own.stat().st_mode & 0o777 == 0o700
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    process, theirs = holder(tmp_path)
    try:
        with private_folder(tmp_path) as own:
            assert (theirs / "socket").exists()
            assert own != theirs
    finally:
        end(process)


def test_links_files_and_folders_of_older_versions_are_left_alone(tmp_path: Path) -> None:
    parent, elsewhere = tmp_path / "memory", tmp_path / "elsewhere"
    for folder in (parent, elsewhere, parent / "istiod-ca-bridge-unlocked"):
        folder.mkdir()
    (elsewhere / "kept").touch()
    (parent / "istiod-ca-bridge.link").symlink_to(elsewhere)
    (parent / "istiod-ca-bridge.file").touch()

    with private_folder(parent):
        assert (elsewhere / "kept").exists()
    assert {path.name for path in parent.iterdir()} == {
        *("istiod-ca-bridge-unlocked", "istiod-ca-bridge.link", "istiod-ca-bridge.file")
    }


def test_without_a_writable_memory_folder_there_is_one_elsewhere(tmp_path: Path) -> None:
    with private_folder(tmp_path / "missing") as own:
        assert os.access(own, os.W_OK)
        assert own.parent != tmp_path
