"""A connection's name says who is behind it, and only the front can have given it."""

import pytest

from hsm_plugin.callers import ANYONE, Caller, CallerKind, Callers, local_address, remote_address
from hsm_plugin.errors import StrangerError

TAG = "0123456789abcdef0123456789abcdef"
SUN_PATH_BYTES = 108


def peer(address: str) -> str:
    """Return the address as gRPC reports it."""
    return "unix-abstract:" + address.removeprefix("\0")


def test_a_local_caller_is_read_back() -> None:
    address = local_address(TAG, "aa", pid=12, uid=1337, gid=7)
    caller = Callers(TAG).of(peer(address))
    assert caller == Caller(CallerKind.LOCAL, client="1337/12", pid=12, uid=1337, gid=7)
    assert caller.fields() == {"kind": "local", "pid": 12, "uid": 1337, "gid": 7}


def test_a_remote_caller_has_the_identity_it_was_let_in_by() -> None:
    callers = Callers(TAG, ["spiffe://a/ns/b/sa/c", "istiod"])
    caller = callers.of(peer(remote_address(TAG, "aa", 1)))
    assert caller == Caller(CallerKind.REMOTE, client="istiod", identity="istiod")
    assert caller.fields() == {"kind": "remote", "identity": "istiod"}


def test_callers_of_other_containers_are_told_apart_by_their_connections() -> None:
    clients = {
        Callers(TAG).of(peer(local_address(TAG, nonce, pid=0, uid=1337, gid=1337))).client
        for nonce in ("aa", "bb")
    }
    assert len(clients) == 2


def test_two_connections_of_a_process_are_one_client() -> None:
    clients = {
        Callers(TAG).of(peer(local_address(TAG, nonce, pid=5, uid=1337, gid=1337))).client
        for nonce in ("aa", "bb")
    }
    assert len(clients) == 1


@pytest.mark.parametrize(
    "name",
    [
        "unix:",
        "unix:/run/hsm/.sock",
        "ipv4:127.0.0.1:5",
        peer(local_address("0" * 32, "aa", pid=1, uid=0, gid=0)),
        peer(local_address(TAG[:-1], "aa", pid=1, uid=0, gid=0)),
        "unix:" + local_address(TAG, "aa", pid=1, uid=0, gid=0),
    ],
)
def test_a_name_without_the_tag_is_a_strangers(name: str) -> None:
    with pytest.raises(StrangerError):
        Callers(TAG).of(name)
    assert Callers(TAG).fields_of(name) == {"kind": "stranger"}


def test_without_a_front_everyone_is_anyone() -> None:
    assert Callers().of("unix:") is ANYONE
    assert Callers().fields_of("unix:") == {"kind": "unknown"}


def test_the_longest_address_fits_a_socket_address() -> None:
    most = (1 << 32) - 1
    address = local_address("f" * 32, "f" * 16, pid=(1 << 31) - 1, uid=most, gid=most)
    assert len(address.encode()) <= SUN_PATH_BYTES
