import asyncio
import shutil
from pathlib import Path

import pytest

from istiod_ca_bridge.errors import (
    ConfigError,
    IssuanceLogError,
    KeyServiceUnavailableError,
    TamperedLogError,
)
from istiod_ca_bridge.issuance_file import IssuanceFile
from istiod_ca_bridge.issuance_log import IssuanceLog, IssuanceLogSettings
from istiod_ca_bridge.issuance_verify import verify
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.signer import PublicKey, Signer
from tests.unit.istiod_ca_bridge.doubles import NOW, local_signer, recorded_log

CA = local_signer()


class Book:
    """An issuance log in a folder, and all that it told."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 1 << 20,
        checkpoint_every: int = 1000,
        issue_without: bool = False,
        signer: Signer = CA,
    ) -> None:
        self.path = folder / "issued.log"
        self.metrics = Metrics()
        log, self.lines = recorded_log()
        self.log = IssuanceLog(
            IssuanceLogSettings(self.path, max_bytes, checkpoint_every, issue_without),
            IssuanceFile(self.path, max_bytes, lambda: NOW),
            lambda: signer,
            log,
            self.metrics,
        )

    async def note(self, *serials: str) -> None:
        async with self.log.running():
            await asyncio.gather(*(self.log.record({"serial": serial}) for serial in serials))

    @property
    def files(self) -> list[Path]:
        return [it for it in self.path.parent.iterdir() if it.suffix != ".lock"]


async def test_what_was_recorded_is_on_the_disk_and_the_chain_goes_on_in_the_next_process(
    tmp_path: Path,
) -> None:
    await Book(tmp_path).note("a", "b")
    assert b'"serial":"b"' in (tmp_path / "issued.log").read_bytes()
    await Book(tmp_path).note("c")

    found = verify([tmp_path / "issued.log"], None)
    assert (found.first, found.issued, found.checkpoints) == (1, 3, 2)
    assert found.sealed == found.last - 1


async def test_the_lock_that_lies_beside_a_log_is_no_part_of_it(tmp_path: Path) -> None:
    await Book(tmp_path).note("a")
    log, lock = (tmp_path / name for name in ("issued.log", "issued.log.lock"))

    assert verify([log, lock], None) == verify([log], None)
    for empty in (lock, tmp_path / "issued.log.000000000001"):
        empty.touch()
        with pytest.raises(TamperedLogError, match="no whole line"):
            verify([empty] if empty == lock else [log, empty], None)


async def test_many_certificates_share_one_write(tmp_path: Path) -> None:
    book = Book(tmp_path)

    await book.note(*(f"{number:x}" for number in range(200)))

    text = book.metrics.exposition().decode()
    assert "istiod_ca_bridge_issuance_log_entries_total 200.0" in text
    groups = text.partition("istiod_ca_bridge_issuance_log_commit_seconds_count ")[2].split()[0]
    assert float(groups) < 10


async def test_a_full_file_is_put_aside_and_the_chain_goes_on_in_the_next(tmp_path: Path) -> None:
    for number in range(6):
        await Book(tmp_path, max_bytes=600).note(f"{number:x}")
    book = Book(tmp_path, max_bytes=600)

    assert len(book.files) > 3
    found = verify(sorted(book.files, reverse=True), None)
    assert (found.first, found.issued) == (1, 6)
    middle = sorted(book.files)[2]
    with pytest.raises(Exception, match="follows number"):
        verify([it for it in book.files if it != middle], None)


@pytest.mark.parametrize("moment", ["renamed", "created", "begun"])
async def test_a_crash_while_a_file_is_put_aside_loses_nothing(tmp_path: Path, moment: str) -> None:
    await Book(tmp_path).note("a")
    full = tmp_path / "issued.log.000000000001"
    (tmp_path / "issued.log").rename(full)
    if moment != "renamed":
        (tmp_path / "issued.log").write_bytes(b"" if moment == "created" else b'{"seq":4,"ti')

    await Book(tmp_path).note("b")

    found = verify([full, tmp_path / "issued.log"], None)
    assert (found.first, found.issued) == (1, 2)


@pytest.mark.parametrize("torn", [b'{"seq":4,"time":"20', b"\0" * 5000, b"x\ny\nz"])
async def test_a_torn_end_is_dropped_and_noted(tmp_path: Path, torn: bytes) -> None:
    await Book(tmp_path).note("a")
    with (tmp_path / "issued.log").open("ab") as file:
        file.write(torn)

    book = Book(tmp_path)
    await book.note("b")

    assert f"issuance_log.recovered {{'dropped_bytes': {len(torn)}}}" in book.lines
    found = verify([book.path], None)
    assert (found.issued, found.recovered) == (2, 1)


async def test_two_processes_do_not_write_one_log(tmp_path: Path) -> None:
    async with Book(tmp_path).log.running():
        with pytest.raises(ConfigError, match="another process"):
            await Book(tmp_path).note("a")


async def test_nothing_is_issued_while_the_disk_is_full_and_again_once_it_is_not(
    tmp_path: Path,
) -> None:
    book = Book(tmp_path)
    async with book.log.running():
        await book.log.record({"serial": "a"})
        shutil.move(book.path, tmp_path / "kept")
        book.log._file.close_file()  # so that the full disk is seen
        book.path.symlink_to("/dev/full")
        for serial in ("b", "c"):
            with pytest.raises(IssuanceLogError, match="No space left"):
                await book.log.record({"serial": serial})
        book.path.unlink()
        shutil.move(tmp_path / "kept", book.path)
        await book.log.record({"serial": "d"})

    text = book.path.read_text()
    assert verify([book.path], None).issued == 2
    assert '"serial":"d"' in text
    assert '"serial":"b"' not in text
    assert sum("issuance_log.not_written" in line for line in book.lines) == 1
    assert any("issuance_log.written_again" in line for line in book.lines)


async def test_where_it_may_be_issued_without_a_log_the_gap_is_counted_in_it(
    tmp_path: Path,
) -> None:
    book = Book(tmp_path, issue_without=True)
    async with book.log.running():
        shutil.move(book.path, tmp_path / "kept")
        book.log._file.close_file()  # so that the full disk is seen
        book.path.symlink_to("/dev/full")
        await asyncio.gather(*(book.log.record({"serial": serial}) for serial in "bc"))
        book.path.unlink()
        shutil.move(tmp_path / "kept", book.path)
        await book.log.record({"serial": "d"})

    assert '"kind":"gap","certificates":2' in book.path.read_text()
    assert verify([book.path], None).gaps == 1


class AbsentSigner:
    """A key in an HSM that is away."""

    @property
    def public_key(self) -> PublicKey:
        return CA.public_key

    async def sign(self, _message: bytes) -> bytes:
        raise KeyServiceUnavailableError("the HSM is away")


async def test_every_so_many_certificates_the_ca_key_signs_the_chain(tmp_path: Path) -> None:
    book = Book(tmp_path, checkpoint_every=2)
    async with book.log.running():
        for number in range(5):
            await book.log.record({"serial": f"{number:x}"})
    assert verify([book.path], None).checkpoints == 3


async def test_the_log_is_written_though_the_key_cannot_sign_it_now(tmp_path: Path) -> None:
    book = Book(tmp_path, checkpoint_every=1, signer=AbsentSigner())
    await book.note("a", "b")

    found = verify([book.path], None)
    assert (found.issued, found.checkpoints) == (2, 0)
    assert any("issuance_log.checkpoint_delayed" in line for line in book.lines)
