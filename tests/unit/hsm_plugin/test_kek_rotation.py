"""A rotation ends with every source under the new KEK, however often it was interrupted."""

import base64
import io
import json
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hsm_plugin import dek_document, kek_rotation, kube
from hsm_plugin.dek_files import MAX_FILE_BYTES, DekFile, DekStream, files_of
from hsm_plugin.envelope import protected_header, serialize
from hsm_plugin.errors import BadRequestError, ConflictError, HsmUnavailableError
from hsm_plugin.kek_rotation import ChangedError, Progress, check_unused, rotate
from hsm_plugin.keys import Sealed

OLD, NEW = b"old", b"new"


def wrapped(kek_id: bytes, dek: bytes = b"dek") -> bytes:
    return serialize(protected_header(kek_id.decode()), Sealed(b"i" * 16, dek, b"t" * 16))


def rewrap(old: bytes, new: bytes, blob: bytes) -> tuple[bytes, bool]:
    """Do what the plugin does, without a token."""
    kek_id = dek_document.read(blob, "it").kek_id
    assert kek_id in (old, new)
    return wrapped(new), kek_id != new


def secret(kek_id: bytes, blob: bytes, **others: str) -> dict[str, str]:
    values = {"kek-id": kek_id, "encrypted-dek": blob}
    return {name: base64.b64encode(value).decode() for name, value in values.items()} | others


@dataclass(slots=True)
class Memory:
    """A source in memory that can be changed by others just before it is replaced."""

    content: bytes
    name: str = "it"
    changes: list[bytes] = field(default_factory=list)

    def read(self) -> bytes:
        return self.content

    def replace(self, old: bytes, new: bytes) -> None:
        if self.changes:
            self.content = self.changes.pop(0)
        if self.content != old:
            raise ChangedError("changed")
        self.content = new


# -- documents -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_bare_blob_is_replaced_and_keeps_its_ending(ending: bytes) -> None:
    document = dek_document.read(wrapped(OLD) + ending, "it")
    assert (document.kek_id, document.blob) == (OLD, wrapped(OLD))
    assert document.with_dek(NEW, wrapped(NEW)) == wrapped(NEW) + ending


@pytest.mark.parametrize("nested", [False, True])
def test_a_secret_gets_both_keys_and_keeps_everything_else(*, nested: bool) -> None:
    data = secret(OLD, wrapped(OLD), **{"encrypted-skey": "c2tleQ=="})
    whole = {"kind": "Secret", "metadata": {"resourceVersion": "7"}, "data": data}
    content = json.dumps(whole if nested else data).encode()
    changed = json.loads(dek_document.read(content, "it").with_dek(NEW, wrapped(NEW)))
    expected = secret(NEW, wrapped(NEW), **{"encrypted-skey": "c2tleQ=="})
    assert changed == ({**whole, "data": expected} if nested else expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a blob",
        b"{",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"data": {"kek-id": "!", "encrypted-dek": "!"}}',
        json.dumps(secret(OLD, b"not a blob")).encode(),
        json.dumps(secret(NEW, wrapped(OLD))).encode(),
        serialize(protected_header("old", b"kubernetes-kms"), Sealed(b"i" * 16, b"d", b"t" * 16)),
    ],
)
def test_what_is_no_wrapped_dek_is_refused_by_its_name(content: bytes) -> None:
    with pytest.raises(BadRequestError, match="the file"):
        dek_document.read(content, "the file")


# -- rotation ------------------------------------------------------------------------------


def test_every_source_comes_under_the_new_kek_and_a_second_run_changes_nothing() -> None:
    bare = Memory(wrapped(OLD), "bare")
    kept = Memory(json.dumps(secret(OLD, wrapped(OLD))).encode(), "kept")
    outcomes = rotate([bare, kept], OLD, NEW, rewrap)
    assert [(entry.name, entry.progress) for entry in outcomes] == [
        ("bare", Progress.REWRAPPED),
        ("kept", Progress.REWRAPPED),
    ]
    before = (bare.content, kept.content)
    outcomes = rotate([bare, kept], OLD, NEW, rewrap)
    assert {entry.progress for entry in outcomes} == {Progress.ALREADY}
    assert (bare.content, kept.content) == before


def test_one_that_fails_is_named_and_the_others_are_rotated() -> None:
    def fail(old: bytes, new: bytes, blob: bytes) -> tuple[bytes, bool]:
        if blob == wrapped(OLD, b"bad"):
            raise HsmUnavailableError("the token is away")
        return rewrap(old, new, blob)

    sources = [Memory(wrapped(OLD, b"bad"), "bad"), Memory(b"x", "none"), Memory(wrapped(OLD))]
    outcomes = rotate(sources, OLD, NEW, fail)
    assert [entry.progress for entry in outcomes] == [
        *(Progress.FAILED, Progress.FAILED, Progress.REWRAPPED)
    ]
    assert sources[0].content == wrapped(OLD, b"bad")
    assert isinstance(outcomes[0].error, HsmUnavailableError)


def test_a_source_that_changes_meanwhile_is_read_again_and_nothing_is_lost() -> None:
    other = json.dumps(secret(OLD, wrapped(OLD), extra="eA==")).encode()
    source = Memory(json.dumps(secret(OLD, wrapped(OLD))).encode(), changes=[other])
    [outcome] = rotate([source], OLD, NEW, rewrap)
    assert outcome.progress is Progress.REWRAPPED
    assert json.loads(source.content) == secret(NEW, wrapped(NEW), extra="eA==")


def test_a_source_that_always_changes_is_given_up() -> None:
    source = Memory(wrapped(OLD), changes=[wrapped(OLD, b"%d" % step) for step in range(100)])
    [outcome] = rotate([source], OLD, NEW, rewrap)
    assert isinstance(outcome.error, ConflictError)


def test_a_kek_is_unused_only_when_every_source_is_under_another_one() -> None:
    check_unused([Memory(wrapped(NEW))], OLD)
    with pytest.raises(ConflictError, match="still needed by second"):
        check_unused([Memory(wrapped(NEW), "first"), Memory(wrapped(OLD), "second")], OLD)
    with pytest.raises(BadRequestError):
        check_unused([Memory(wrapped(NEW)), Memory(b"unreadable")], OLD)
    with pytest.raises(BadRequestError, match="nothing was named"):
        check_unused([], OLD)


# -- files ---------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_with_its_mode_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "dek"
    path.write_bytes(b"before")
    path.chmod(0o440)
    DekFile(path).replace(b"before", b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_changed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "dek"
    path.write_bytes(b"changed")
    with pytest.raises(ChangedError):
        DekFile(path).replace(b"before", b"after")
    assert path.read_bytes() == b"changed"


def test_a_write_that_ends_early_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dek"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hsm_plugin.whole_file.os.fsync", fail)
    with pytest.raises(BadRequestError, match="No space left"):
        DekFile(path).replace(b"before", b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_means_its_files_and_a_link_its_target(tmp_path: Path) -> None:
    folder = tmp_path / "deks"
    (folder / "below").mkdir(parents=True)
    for name in ("b", "a", ".hidden", "below/c"):
        (folder / name).write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(folder / "a")
    assert [file.path for file in files_of([folder])] == [folder / "a", folder / "b"]
    assert [file.path for file in files_of([link])] == [folder / "a"]


def test_a_folder_that_may_not_be_read_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BadRequestError, match="cannot be read: Permission denied"):
        files_of([tmp_path])


def test_a_link_that_leads_to_itself_is_told_as_such(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(BadRequestError, match="cannot be read"):
        [file.read() for file in files_of([link])]


@pytest.mark.parametrize("token", ["canary\ncanary", "canary\u00e9", "\x1bcanary", "", "\n"])
def test_a_token_that_is_none_is_refused_and_not_quoted(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(BadRequestError, match="holds no token") as caught:
        kube.Api("127.0.0.1:1", tmp_path).send("GET", "/", None)
    assert "canary" not in str(caught.value) + caught.value.hint
    assert caught.value.__context__ is None


def test_a_secret_mounted_as_a_folder_is_refused(tmp_path: Path) -> None:
    for name in ("kek-id", "encrypted-dek"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadRequestError, match="files of their own"):
        files_of([tmp_path])


def test_too_much_and_too_little_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dek"
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(BadRequestError, match="larger than"):
        DekFile(path).read()
    with pytest.raises(BadRequestError, match="cannot be read"):
        DekFile(tmp_path / "none").read()


def test_a_stream_is_read_once_and_holds_what_is_to_be_written() -> None:
    stream = DekStream(io.BytesIO(wrapped(OLD)))
    [outcome] = kek_rotation.rotate([stream], OLD, NEW, rewrap)
    assert outcome.progress is Progress.REWRAPPED
    assert stream.content == wrapped(NEW)


# -- Secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-slash", "/x", "x/", "a/../b", "a/b/c", "A/b", "a/b?c", "a/-"])
def test_a_name_that_is_none_of_a_secret_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError, match="not the name of a Secret"):
        kube.secret(kube.Api("localhost:1", Path("/none")), name)
