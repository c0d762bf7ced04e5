"""Records that somebody changed field by field are read or refused: Secrets, API objects, logs."""

import asyncio
import base64
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from istiod_ca_bridge.crl import make_crl, number_of, read_revocations, why_anew, write_revocations
from istiod_ca_bridge.crl_bundle import lists_in, pem_of_lists
from istiod_ca_bridge.errors import BridgeError, CorruptSecretError
from istiod_ca_bridge.kube_remote import connect_remote
from istiod_ca_bridge.remote_kubeconfig import remote_api
from istiod_ca_bridge.revocations import CRL_KEY, RECORD_KEY, RevocationKeeper
from istiod_ca_bridge.rotation import Phase, Wish
from istiod_ca_bridge.store import StoredSecret
from tests.support import pki
from tests.support.json_mutants import mutants
from tests.unit.istiod_ca_bridge.doubles import NOW, recorded_log
from tests.unit.istiod_ca_bridge.test_revocations import CA, OLD, ROOT_LIST, STOLEN, issuers_lists
from tests.unit.istiod_ca_bridge.test_signing_request import CART, csr, uri
from tests.unit.parsers import bounded
from tests.unit.state_parsers import PARSERS, REQUESTOR, SIGNER

ROTATION = {
    "phase": "overlap",
    "key-algorithm": "ecdsa-p256",
    "started-at": "2026-01-01T00:00:00Z",
    "longest-lifetime-seconds": "86400",
    "distributed-at": "2026-01-02T00:00:00Z",
    "activated-at": "2026-01-04T00:00:00Z",
    "old-expires-at": "2026-06-04T00:00:00Z",
    "next-key.pem": "",
    "next-chain.pem": "",
    "old-chain.pem": "a chain",
    "wish": "none",
    "answer": "",
}
REPORT = {"ca": "00" * 32, "roots": ["00" * 32], "at": "2026-01-31T12:00:00Z"}
CONDITIONS = [{"type": "Ready", "status": "True", "reason": "A", "message": "b"}]
REVOKED = json.loads(write_revocations([STOLEN, OLD]))
REQUEST = {
    "metadata": {
        "name": "csr-workload-1",
        "resourceVersion": "7",
        "annotations": {"experimental.cert-manager.io/request-duration": "24h0m0s"},
    },
    "spec": {
        "signerName": SIGNER,
        "username": REQUESTOR,
        "request": base64.b64encode(csr(uri(CART)).encode()).decode(),
        "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
        "expirationSeconds": 3600,
    },
    "status": {"conditions": [{"type": "Approved", "status": "True"}]},
}
KUBECONFIG = {
    "current-context": "east",
    "contexts": [{"name": "east", "context": {"cluster": "east", "user": "east"}}],
    "clusters": [
        {
            "name": "east",
            "cluster": {
                "server": "https://east.test:6443",
                "certificate-authority-data": base64.b64encode(pki.root().pem).decode(),
                "tls-server-name": "kubernetes",
            },
        }
    ],
    "users": [{"name": "east", "user": {"token": "t0p"}}],
}


def judge(name: str, data: bytes) -> object:
    """Give the bytes to a parser of this name; None when it refuses."""
    [parser] = [it for it in PARSERS if it.name == name]
    try:
        return parser.parse(data, Path("/nonexistent"))
    except parser.refusals as error:
        bounded(error)
        return None


def to_json(value: Any) -> bytes:
    """Return the value as JSON; numbers of any length, and half characters, as they are."""
    return json.dumps(value).encode()


@given(mutants(ROTATION))
def test_any_rotation_record_is_followed_or_refused(record: Any) -> None:
    judge("bridge_rotation", to_json(record))


def test_the_sound_record_of_each_phase_is_read() -> None:
    for phase in Phase:
        for wish in Wish:
            record = ROTATION | {"phase": phase.value, "wish": wish.value}
            assert judge("bridge_rotation", to_json(record)) is not None


@given(mutants(REPORT))
def test_any_report_of_a_replica_is_read(report: Any) -> None:
    judge("bridge_replica_report", to_json(report))


@given(mutants(CONDITIONS))
def test_any_list_of_conditions_is_read(conditions: Any) -> None:
    judge("bridge_condition_messages", to_json(conditions))


@given(mutants(REQUEST))
def test_any_signing_request_is_granted_refused_or_malformed(request: Any) -> None:
    judge("bridge_signing_request", to_json(request))


def test_the_sound_signing_request_is_granted() -> None:
    assert judge("bridge_signing_request", to_json(REQUEST)) is not None


@given(mutants(KUBECONFIG))
def test_any_remote_kubeconfig_is_connected_with_or_refused(kubeconfig: Any) -> None:
    try:
        api = remote_api(yaml.safe_dump(kubeconfig, allow_unicode=True).encode(errors="replace"))
    except CorruptSecretError as error:
        bounded(error)
        return
    connect_remote(api).close()
    ssl.create_default_context(cadata=api.ca_pem)
    assert api.token.isascii()
    assert api.token.isprintable()


async def sound_crl() -> bytes:
    crl = await make_crl(CA.issuer, [STOLEN, OLD], number=7, now=NOW)
    return crl.public_bytes(serialization.Encoding.DER)


_CRL = asyncio.run(sound_crl())
_BESIDE = st.sampled_from([b"", b"\n", "é\n".encode(), b"\xff", b"\0"]) | st.binary(max_size=3)


@st.composite
def crls(draw: st.DrawFn) -> bytes:
    """Return the list in PEM with a few bytes changed, and perhaps something beside it."""
    der = bytearray(_CRL)
    for _ in range(draw(st.integers(0, 3))):
        der[draw(st.integers(0, len(der) - 1))] = draw(st.integers(0, 255))
    text = base64.encodebytes(bytes(der))
    pem = b"-----BEGIN X509 CRL-----\n" + text + b"-----END X509 CRL-----\n"
    return draw(_BESIDE) + pem + draw(_BESIDE)


class Unchanging:
    """A secret that somebody else wrote."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.stored = StoredSecret(values, "1")

    async def read(self) -> StoredSecret:
        return self.stored

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        assert version == "1"
        self.stored = StoredSecret({**self.stored.values, **values}, "2")


@given(crls(), st.one_of(st.just(REVOKED), mutants(REVOKED)))
def test_any_state_of_the_revocations_is_mended_or_refused(crl: bytes, record: Any) -> None:
    published: list[str] = []

    async def publish(text: str) -> None:
        published.append(text)

    above = issuers_lists(ROOT_LIST)
    secret = Unchanging({CRL_KEY: crl, RECORD_KEY: to_json(record), **above})
    keeper = RevocationKeeper(secret, lambda: CA, publish, lambda: NOW, recorded_log()[0])
    try:
        asyncio.run(keeper._look())
    except BridgeError:
        assert published == []
        return
    [text] = published
    served, *_ = lists_in(text.encode())
    assert text == pem_of_lists(lists_in(text.encode()))
    assert why_anew(served, CA.issuer, read_revocations(to_json(record)).values(), NOW) == ""
    assert number_of(served) < 1 << 64
