"""A socket is claimed from a dead owner, never from a live one."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_plugin import socket_file
from hsm_plugin.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".sock"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield server


def test_a_free_path_is_claimed(path: Path) -> None:
    socket_file.claim(path)
    assert not path.exists()


def test_a_dead_servers_socket_is_removed(path: Path, listener: socket.socket) -> None:
    listener.close()
    assert path.exists()
    socket_file.claim(path)
    assert not path.exists()


def test_a_live_servers_socket_is_left_alone(path: Path, listener: socket.socket) -> None:
    listener.listen()
    with pytest.raises(ConfigError, match="another server answers") as caught:
        socket_file.claim(path)
    assert "stop it first" in caught.value.hint
    assert path.exists()


def test_a_busy_servers_socket_is_left_alone(path: Path, listener: socket.socket) -> None:
    listener.listen(0)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError):
            socket_file.claim(path)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "dangling link"])
def test_what_is_not_a_socket_is_left_alone(path: Path, kind: str) -> None:
    target = path.with_name("target")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link to a file":
            target.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        socket_file.claim(path)
    assert path.is_symlink() or path.exists()


def test_sockets_made_inside_have_mode_0660_and_the_umask_comes_back(path: Path) -> None:
    before = os.umask(0o022)
    try:
        with socket_file.narrow_umask(), socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_the_umask_comes_back_after_an_error() -> None:
    before = os.umask(0o022)
    try:
        with pytest.raises(RuntimeError), socket_file.narrow_umask():
            raise RuntimeError
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_is_given_to_a_group_that_is_ours(path: Path) -> None:
    path.touch()
    assert socket_file.share_with_group(path, os.getegid())
    assert path.stat().st_gid == os.getegid()


def test_a_socket_that_may_not_be_given_away_stays_ours(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    path.touch()
    assert not socket_file.share_with_group(path, 1337)
