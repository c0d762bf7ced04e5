"""istiod's serving certificate in a Secret of a real API server."""

import base64
import secrets
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from kubernetes import client

from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.support.kube import KubeCluster

NAME = "istiod-tls"
SETTINGS = {"PUBLISH_ROOT_CERT": "false", "ISTIO_REVISIONS": "default,1-32"}


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with cluster_harness.serving_site(
        kube, f"bridge-{secrets.token_hex(4)}", tmp_path_factory.mktemp("bridge"), SETTINGS
    ) as site:
        yield site


def held(site: Site) -> dict[str, bytes]:
    try:
        secret = site.core.read_namespaced_secret(NAME, site.namespace)
    except client.ApiException as error:
        if error.status == 404:
            return {}
        raise
    return {key: base64.b64decode(value) for key, value in (secret.data or {}).items()}


def await_another(site: Site, before: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the Secret once it is whole and none of its certificates is the one before."""
    site.bridge.wait_until(
        lambda: held(site).get("tls.crt", b"") not in {b"", before.get("tls.crt", b"")},
        "another certificate",
    )
    return held(site)


def test_istiod_finds_a_secret_that_it_can_serve_with_under_each_of_its_names(
    site: Site, tmp_path: Path
) -> None:
    values = await_another(site, {})

    secret = site.core.read_namespaced_secret(NAME, site.namespace)
    assert secret.type == "kubernetes.io/tls"
    assert values["ca.crt"] == site.root.pem
    for key in ("tls.crt", "tls.key"):
        (tmp_path / key).write_bytes(values[key])
    for name in (f"istiod.{site.namespace}.svc", f"istiod-1-32.{site.namespace}.svc"):
        assert handshake(tmp_path, values["ca.crt"], name) is None
    assert handshake(tmp_path, values["ca.crt"], f"other.{site.namespace}.svc") is not None
    assert handshake(tmp_path, harness.strict_root().pem, name) is not None
    assert "PRIVATE KEY" not in site.bridge.log


def handshake(folder: Path, root: bytes, name: str) -> ssl.SSLError | None:
    """Return why a client that trusts the root and wants the name refuses, if it does."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    trusting = ssl.create_default_context(cadata=root.decode())
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        trusting.wrap_bio(to_client, to_server, server_hostname=name),
        serving.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error
    return None


@pytest.mark.parametrize("key", ["tls.crt", "tls.key", "ca.crt"])
def test_a_secret_changed_by_hand_is_issued_anew(site: Site, key: str) -> None:
    before = await_another(site, {})
    tampered = base64.b64encode(b"tampered").decode()
    site.core.patch_namespaced_secret(NAME, site.namespace, {"data": {key: tampered}})

    after = await_another(site, before | ({key: b"tampered"} if key == "tls.crt" else {}))

    site.bridge.wait_until(lambda: b"tampered" not in held(site).values(), "a mended Secret")
    assert after["tls.key"] != before["tls.key"]


def test_a_deleted_secret_comes_back(site: Site) -> None:
    before = await_another(site, {})
    site.core.delete_namespaced_secret(NAME, site.namespace)

    assert await_another(site, before)["ca.crt"] == site.root.pem


def test_a_restart_keeps_the_certificate_and_another_revision_gets_its_name(site: Site) -> None:
    before = await_another(site, {})
    site.bridge.stop()
    again = dict(site.bridge.environment)
    folder, socket = site.bridge.folder, site.hsm.socket
    with harness.running_bridge(folder, socket, again) as bridge:
        bridge.await_serving()
        bridge.await_log("bridge.started", 2)
        assert held(site) == before
    with harness.running_bridge(folder, socket, again | {"ISTIO_REVISIONS": "next"}) as bridge:
        bridge.await_serving()
        bridge.await_log("it has other names")

    leaf = x509.load_pem_x509_certificate(held(site)["tls.crt"])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        f"istiod.{site.namespace}.svc",
        f"istiod-next.{site.namespace}.svc",
    ]
