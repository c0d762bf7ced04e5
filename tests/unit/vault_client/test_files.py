"""What the publisher leaves in its directory (files, so a little I/O: in memory)."""

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.vault_client import memory_folder, publish
from vault_client.delivery import Permissions, SecretSet
from vault_client.errors import TargetError
from vault_client.files import Publisher, read_published
from vault_client.secret import Secret

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ONE = SecretSet({"pin": Secret(b"1111"), "key": Secret(b"one")}, 1)
TWO = SecretSet({"pin": Secret(b"2222"), "key": Secret(b"two")}, 2)


@pytest.fixture
def root() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def publisher(root: Path) -> Iterator[Publisher]:
    opened = Publisher(root, Permissions(), allow_disk=False)
    opened.open()
    yield opened
    opened.close()


def generations(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("..2*"))


def test_the_layout_is_the_kubelets(publisher: Publisher, root: Path) -> None:
    published = publish(publisher, ONE, NOW)
    assert (root / "..data").readlink() == Path(published.generation)
    assert published.generation.startswith("..2026_01_31_12_00_00.")
    for name in ("pin", "key", "manifest.json"):
        assert (root / name).readlink() == Path("..data", name)
    assert (root / "pin").read_bytes() == b"1111"


def test_a_staged_set_is_whole_in_its_folder_and_seen_only_once_it_is_put_in_place(
    publisher: Publisher, root: Path
) -> None:
    first = publish(publisher, ONE, NOW)
    staged = publisher.stage(TWO, NOW)
    assert (root / staged.generation / "pin").read_bytes() == b"2222"
    assert stat.S_IMODE((root / staged.generation / "pin").stat().st_mode) == 0o400
    assert publisher.current() == first
    publisher.put_in_place(staged)
    assert publisher.current() == staged
    assert (root / "pin").read_bytes() == b"2222"


def test_a_staged_set_that_is_discarded_leaves_nothing_behind(
    publisher: Publisher, root: Path
) -> None:
    first = publish(publisher, ONE, NOW)
    publisher.discard(publisher.stage(TWO, NOW))
    assert generations(root) == [first.generation]
    assert (root / "pin").read_bytes() == b"1111"


def test_a_set_that_could_not_be_staged_whole_leaves_nothing_behind(
    publisher: Publisher, root: Path
) -> None:
    first = publish(publisher, ONE, NOW)
    torn = SecretSet({"pin": Secret(b"2222"), "no-such-folder/key": Secret(b"two")}, 2)
    with pytest.raises(TargetError):
        publisher.stage(torn, NOW)
    assert generations(root) == [first.generation]


def test_a_staged_set_that_came_into_place_is_not_discarded(
    publisher: Publisher, root: Path
) -> None:
    staged = publish(publisher, ONE, NOW)
    publisher.discard(staged)
    assert publisher.current() == staged
    assert (root / "pin").read_bytes() == b"1111"


def test_a_staged_set_of_a_killed_process_is_cleared_by_the_next(
    publisher: Publisher, root: Path
) -> None:
    first = publish(publisher, ONE, NOW)
    publisher.stage(TWO, NOW)
    publisher.close()
    publisher.open()
    assert generations(root) == [first.generation]


def test_the_manifest_tells_the_version_and_the_time_and_nothing_of_the_values(
    publisher: Publisher, root: Path
) -> None:
    publish(publisher, ONE, NOW)
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["kv_version"] == 1
    assert datetime.fromisoformat(manifest["published_at"]) == NOW
    assert set(manifest["hmac_sha256"]) == {"pin", "key"}


def test_a_digest_of_the_same_value_differs_between_processes_and_not_within_one(
    publisher: Publisher, root: Path
) -> None:
    def digest() -> str:
        return str(json.loads((root / "manifest.json").read_text())["hmac_sha256"]["pin"])

    publish(publisher, ONE, NOW)
    first = digest()
    publish(publisher, ONE, NOW)
    assert digest() == first
    publisher.close()
    other = Publisher(root, Permissions(), allow_disk=False)
    other.open()
    publish(other, ONE, NOW)
    other.close()
    assert digest() != first


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_modes_are_exact_whatever_the_umask(root: Path, mode: int) -> None:
    publisher = Publisher(root, Permissions(mode), allow_disk=False)
    publisher.open()
    before = os.umask(0)
    try:
        publish(publisher, ONE, NOW)
    finally:
        os.umask(before)
        publisher.close()
    folder = (root / "..data").resolve()
    assert stat.S_IMODE(folder.stat().st_mode) == (0o750 if mode & 0o040 else 0o700)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}


def test_the_set_in_place_is_recognised_and_any_difference_too(
    publisher: Publisher, root: Path
) -> None:
    assert not publisher.holds(ONE)
    publish(publisher, ONE, NOW)
    assert publisher.holds(ONE)
    assert not publisher.holds(TWO)
    (root / "pin").chmod(0o444)
    assert not publisher.holds(ONE)


@pytest.mark.parametrize("name", ["pin", "..data", "..data/pin"])
def test_a_set_with_a_part_taken_away_is_not_in_place(
    publisher: Publisher, root: Path, name: str
) -> None:
    publish(publisher, ONE, NOW)
    (root / name).unlink()
    assert not publisher.holds(ONE)
    publish(publisher, ONE, NOW)
    assert publisher.holds(ONE)


def test_a_file_in_the_way_of_a_plain_name_is_replaced(publisher: Publisher, root: Path) -> None:
    (root / "pin").write_text("old")
    publish(publisher, ONE, NOW)
    assert (root / "pin").read_bytes() == b"1111"


def test_a_name_that_is_no_longer_delivered_goes(publisher: Publisher, root: Path) -> None:
    publish(publisher, ONE, NOW)
    publish(publisher, SecretSet({"pin": Secret(b"1111")}, 2), NOW)
    assert not (root / "key").is_symlink()


def test_files_of_others_are_left_alone(publisher: Publisher, root: Path) -> None:
    (root / "theirs").write_text("x")
    publish(publisher, ONE, NOW)
    publisher.wipe()
    assert [path.name for path in root.iterdir()] == ["theirs"]


def test_the_generation_before_stays_for_its_readers_and_then_goes(
    publisher: Publisher, root: Path
) -> None:
    publish(publisher, ONE, NOW)
    newest = publish(publisher, TWO, NOW)
    publisher.sweep(datetime.now(UTC))
    assert len(generations(root)) == 2
    publisher.sweep(datetime.now(UTC), older_than_seconds=0.0)
    assert generations(root) == [newest.generation]


def test_a_wipe_overwrites_what_an_open_reader_still_holds(
    publisher: Publisher, root: Path
) -> None:
    publish(publisher, ONE, NOW)
    with (root / "pin").open("rb") as reader:
        publisher.wipe()
        assert reader.read() == bytes(4)
    assert list(root.iterdir()) == []
    assert publisher.current() is None


def test_what_a_killed_publish_left_is_cleared_on_opening(root: Path) -> None:
    (root / "..2026_torn").mkdir()
    (root / "..2026_torn" / "pin").write_text("11")
    (root / "..data_tmp").symlink_to("..2026_torn")
    (root / "..link_tmp").symlink_to("..data/pin")
    publisher = Publisher(root, Permissions(), allow_disk=False)
    publisher.open()
    publisher.close()
    assert list(root.iterdir()) == []


def test_a_set_without_its_manifest_or_a_file_is_not_whole(
    publisher: Publisher, root: Path
) -> None:
    assert read_published(root) is None
    publish(publisher, ONE, NOW)
    assert read_published(root) is not None
    (root / "..data" / "key").unlink()
    assert read_published(root) is None
    publish(publisher, ONE, NOW)
    manifest = root / "..data" / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text("[]")
    assert read_published(root) is None


def test_a_second_writer_is_kept_out(publisher: Publisher, root: Path) -> None:
    del publisher
    with pytest.raises(TargetError, match="another vault-client"):
        Publisher(root, Permissions(), allow_disk=False).open()


def test_a_directory_on_disk_is_refused_unless_allowed(root: Path) -> None:
    disk = Path(__file__).parent
    with pytest.raises(TargetError, match="not in memory"):
        Publisher(disk, Permissions(), allow_disk=False).open()
    Publisher(root, Permissions(), allow_disk=True).open()


def test_a_target_that_cannot_be_a_directory_is_refused(root: Path) -> None:
    (root / "file").write_text("")
    with pytest.raises(TargetError, match="does not take the set"):
        Publisher(root / "file", Permissions(), allow_disk=False).open()
