"""The ways in are checked at once; what would be open to everyone is refused."""

from typing import Any

import pytest

from hsm_plugin.errors import ConfigError
from hsm_plugin.front_settings import AllowList
from hsm_plugin.listen_settings import ListenSettings, listen_settings

TCP: dict[str, Any] = {
    "enable_server": True,
    "tls_ca": "/ca",
    "tls_certificate": "/crt",
    "tls_key": "/key",
    "tls_allow": ["istiod,spiffe://a/b", "other"],
}


def made(**changed: Any) -> ListenSettings:
    settings: dict[str, Any] = {
        "disable_socket": False,
        "allow_uids": "",
        "allow_gids": "",
        "enable_server": False,
        "host": "127.0.0.1",
        "port": 31400,
        "tls_ca": "",
        "tls_certificate": "",
        "tls_key": "",
        "tls_allow": [],
    }
    return listen_settings(**settings | changed)


def test_by_default_there_is_the_socket_alone_and_no_allow_list() -> None:
    assert made() == ListenSettings(unix=True, allow=None, tcp=None)


def test_ids_are_read_from_lists() -> None:
    allow = made(allow_uids="1337, 0", allow_gids="7").allow
    assert allow == AllowList(frozenset({0, 1337}), frozenset({7}))


@pytest.mark.parametrize("name", ["allow_uids", "allow_gids"])
def test_any_admits_everyone(name: str) -> None:
    assert made(**{name: "any"}).allow == AllowList(everyone=True)


def test_clients_of_the_port_are_read_from_flags_and_commas() -> None:
    tcp = made(**TCP, disable_socket=True).tcp
    assert tcp is not None
    assert tcp.tls.allow == ("istiod", "spiffe://a/b", "other")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (TCP | {"tls_allow": []}, "--tls-allow is not set"),
        (TCP | {"tls_allow": [","]}, "--tls-allow is not set"),
        (TCP | {"tls_ca": ""}, "--tls-ca is not set"),
        (TCP | {"tls_certificate": ""}, "--tls-certificate is not set"),
        (TCP | {"tls_key": ""}, "--tls-key is not set"),
        (TCP | {"port": 65536}, "--port must be"),
        (TCP | {"tls_allow": ["x,"] * 257}, "more than 256 clients"),
        ({"tls_allow": ["istiod"]}, "--enable-server opens"),
        ({"tls_key": "/key"}, "--enable-server opens"),
        ({"disable_socket": True}, "--disable-socket leaves no way in"),
        (TCP | {"disable_socket": True, "allow_uids": "0"}, "the socket, which is disabled"),
        ({"allow_uids": "root"}, "--allow-uid"),
        ({"allow_uids": "-1"}, "--allow-uid"),
        ({"allow_uids": "4294967295"}, "--allow-uid"),
        ({"allow_uids": "1,,2"}, "--allow-uid"),
        ({"allow_gids": "1;2"}, "--allow-gid"),
        ({"allow_gids": "¹"}, "--allow-gid"),
        ({"allow_gids": ",".join("1" * 257)}, "more than 256"),
    ],
)
def test_a_fault_is_named(changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        made(**changed)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made(enable_server=True, port=-1)
    for fault in ("--tls-ca", "--tls-certificate", "--tls-key", "--tls-allow", "--port"):
        assert fault in str(caught.value)
