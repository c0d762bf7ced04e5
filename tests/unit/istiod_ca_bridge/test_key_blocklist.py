import asyncio
import contextlib
from pathlib import Path

import pytest

from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.key_blocklist import KeyBlocklist
from tests.unit.istiod_ca_bridge.doubles import recorded_log

A, B = "a1" * 32, "b2" * 32


async def eventually(condition: object) -> None:
    assert callable(condition)
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


def test_digests_are_read_as_tools_print_them(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# stolen\n{A.upper()}  # laptop\n\n{':'.join([B[:2]] * 32)}\n")
    log, _ = recorded_log()

    listed = KeyBlocklist(path, log)

    assert bytes.fromhex(A) in listed
    assert bytes.fromhex(B) in listed
    assert bytes(32) not in listed


@pytest.mark.parametrize("text", ["hello", A[:-1], f"{A} {B}"])
def test_a_file_with_anything_else_is_a_fault_that_names_the_line(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{A}\n{text}\n")

    with pytest.raises(ConfigError, match="line 2"):
        KeyBlocklist(path, recorded_log()[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyBlocklist(tmp_path / "nothing", recorded_log()[0])


async def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(A)
    log, lines = recorded_log()
    listed = KeyBlocklist(path, log, poll_seconds=0.01)
    watch = asyncio.create_task(listed.watch())

    path.write_text("broken")
    await eventually(lambda: any("key_blocklist.refused" in line for line in lines))
    assert bytes.fromhex(A) in listed
    (tmp_path / "new").write_text(B)
    (tmp_path / "new").replace(path)
    await eventually(lambda: bytes.fromhex(B) in listed)
    assert bytes.fromhex(A) not in listed

    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
