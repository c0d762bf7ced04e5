"""The signer of CertificateSigningRequests at a real API server, asked as istiod asks."""

import base64
import itertools
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client, utils

from tests.integration.istiod_ca_bridge import cluster_harness, harness
from tests.integration.istiod_ca_bridge.cluster_harness import ACCOUNT, Site
from tests.support.figures import figures
from tests.support.kube import KubeCluster
from tests.support.ports import free_port

RIGHTS = Path("deploy/kustomize/csr-signer/rbac.yaml")
DOMAIN, NAME = "mesh.example.com", "hsm"
SIGNER = f"{DOMAIN}/{NAME}"
USAGES = ("digital signature", "key encipherment", "server auth", "client auth")
CART = "spiffe://cluster.local/ns/shop/sa/cart"
SECONDS = 20.0
SETTINGS = {
    "BRIDGE_MODE": "csr-signer",
    "CERT_SIGNER_DOMAIN": DOMAIN,
    "CERT_SIGNER_NAMES": NAME,
    "CA_KEY_ALGORITHM": "ecdsa-p256",
}
LIFETIME = "experimental.cert-manager.io/request-duration"


@dataclass(frozen=True, slots=True)
class Istiod:
    """Asks as pilot's registration authority does: create, approve, wait, delete."""

    api: client.CertificatesV1Api

    def sign(self, csr: str, **options: Any) -> str:
        """Return the certificate; TimeoutError when none comes."""
        name = self.ask(csr, **options)
        try:
            return self.certificate(name)
        finally:
            self.api.delete_certificate_signing_request(name)

    def ask(
        self,
        csr: str,
        *,
        signer: str = SIGNER,
        usages: Sequence[str] = USAGES,
        seconds: int | None = None,
        annotation: str | None = None,
        verdict: str | None = "Approved",
    ) -> str:
        """Return the name of a request, approved at once."""
        body = client.V1CertificateSigningRequest(
            metadata=client.V1ObjectMeta(
                name=f"csr-workload-{secrets.token_hex(9)}",
                annotations={LIFETIME: annotation} if annotation else None,
            ),
            spec=client.V1CertificateSigningRequestSpec(
                request=base64.b64encode(csr.encode()).decode(),
                signer_name=signer,
                usages=list(usages),
                expiration_seconds=seconds,
            ),
        )
        made: Any = self.api.create_certificate_signing_request(body)
        if verdict:
            made.status.conditions = [
                client.V1CertificateSigningRequestCondition(
                    type=verdict, status="True", reason="test", message="test"
                )
            ]
            self.api.replace_certificate_signing_request_approval(made.metadata.name, made)
        return str(made.metadata.name)

    def read(self, name: str) -> Any:
        return self.api.read_certificate_signing_request(name).status

    def certificate(self, name: str) -> str:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            status = self.read(name)
            if status.certificate:
                return base64.b64decode(status.certificate).decode()
            time.sleep(0.02)
        raise TimeoutError(str(status.conditions))

    def refusal(self, name: str) -> tuple[str, str]:
        """Return reason and message of the condition Failed, once it is there."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for condition in self.read(name).conditions:
                if condition.type == "Failed":
                    return condition.reason, condition.message
            time.sleep(0.02)
        raise TimeoutError(name)


@pytest.fixture(scope="module")
def site(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with cluster_harness.serving_site(
        kube,
        f"bridge-{secrets.token_hex(4)}",
        tmp_path_factory.mktemp("bridge"),
        SETTINGS,
        rights=RIGHTS,
    ) as site:
        yield site


@pytest.fixture(scope="module")
def istiod(site: Site) -> Iterator[Istiod]:
    """istiod's own account, with the rights that its chart gives it by certSigners."""
    name = f"istiod-{site.namespace}"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    account = {"kind": "ServiceAccount", "name": "istiod", "namespace": site.namespace}
    group = "certificates.k8s.io"
    rules = [
        {
            "apiGroups": [group],
            "resources": [
                "certificatesigningrequests",
                "certificatesigningrequests/approval",
                "certificatesigningrequests/status",
            ],
            "verbs": ["update", "create", "get", "delete", "watch"],
        },
        {
            "apiGroups": [group],
            "resources": ["signers"],
            "resourceNames": [f"{DOMAIN}/*"],
            "verbs": ["approve"],
        },
    ]
    site.kube.create_service_account(site.namespace, "istiod")
    bodies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ClusterRole", {"rules": rules}),
        ("ClusterRoleBinding", {"roleRef": role, "subjects": [account]}),
    )
    for kind, body in bodies:
        document = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name},
            **body,
        }
        utils.create_from_dict(  # type: ignore[no-untyped-call]  # untyped driver
            site.kube.admin_client(), document
        )
    yield Istiod(
        client.CertificatesV1Api(site.kube.client_for_service_account(site.namespace, "istiod"))
    )
    rbac = client.RbacAuthorizationV1Api(site.kube.admin_client())
    rbac.delete_cluster_role_binding(name)
    rbac.delete_cluster_role(name)


@pytest.fixture(scope="module")
def administrator(site: Site) -> Istiod:
    """Someone who may ask for and approve anything, and is no istiod."""
    return Istiod(client.CertificatesV1Api(site.kube.admin_client()))


def csr_of(*names: x509.GeneralName) -> str:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


def workload(uri: str = CART) -> str:
    return csr_of(x509.UniformResourceIdentifier(uri))


def names_of(leaf: x509.Certificate) -> list[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def lifetime(leaf: x509.Certificate) -> timedelta:
    return leaf.not_valid_after_utc - datetime.now(UTC)


def test_a_workloads_request_is_signed_and_ends_at_the_meshs_root(
    site: Site, istiod: Istiod
) -> None:
    chain = x509.load_pem_x509_certificates(istiod.sign(workload(), seconds=3600).encode())

    for below, above in itertools.pairwise([*chain, site.root.certificate]):
        below.verify_directly_issued_by(above)
    assert len(chain) == 2
    assert names_of(chain[0]) == [CART]
    assert timedelta(minutes=55) < lifetime(chain[0]) < timedelta(minutes=61)
    assert "by=csr csr=csr-workload-" in site.bridge.log
    told = figures(site.bridge.environment["METRICS_LISTEN"])
    assert told["citadel_server_success_cert_issuance_count"] >= 1
    ends = chain[1].not_valid_after_utc.timestamp()
    assert told["citadel_server_cert_chain_expiry_timestamp"] == ends


def test_istiods_own_request_for_ten_years_gets_its_names_for_as_long_as_is_allowed(
    site: Site, istiod: Istiod
) -> None:
    names = [f"{name}.{site.namespace}.svc" for name in ("istio-pilot", "istiod", "istiod-remote")]
    csr = csr_of(*(x509.DNSName(name) for name in names))

    leaf, *_ = x509.load_pem_x509_certificates(istiod.sign(csr, annotation="87600h0m0s").encode())
    short, *_ = x509.load_pem_x509_certificates(istiod.sign(csr, annotation="1h0m0s").encode())

    assert names_of(leaf) == names
    assert leaf.not_valid_after_utc == site.root.certificate.not_valid_after_utc
    assert lifetime(short) < timedelta(minutes=61)


@pytest.mark.parametrize(
    ("csr", "usages", "reason"),
    [
        (workload("spiffe://evil.test/ns/shop/sa/cart"), USAGES, "Forbidden"),
        (csr_of(x509.DNSName("kubernetes.default.svc")), USAGES, "Forbidden"),
        (workload("https://cluster.local/x"), USAGES, "Invalid"),
        (workload(), (*USAGES, "cert sign"), "Invalid"),
    ],
)
def test_what_no_istiod_may_have_fails_with_the_reason(
    istiod: Istiod, csr: str, usages: Sequence[str], reason: str
) -> None:
    name = istiod.ask(csr, usages=usages)

    told, message = istiod.refusal(name)

    assert (told, bool(message)) == (reason, True)
    assert istiod.read(name).certificate is None


def test_a_request_of_anyone_else_fails_even_when_it_was_approved(
    site: Site, administrator: Istiod
) -> None:
    name = administrator.ask(workload())

    assert administrator.refusal(name) == (
        "Forbidden",
        "admin may not ask for certificates of the mesh",
    )
    assert f"csr={name} requestor=admin" in site.bridge.log


def test_requests_that_are_not_approved_or_not_for_us_are_left_alone(
    istiod: Istiod, administrator: Istiod
) -> None:
    left = [
        istiod.ask(workload(), verdict=None),
        istiod.ask(workload(), verdict="Denied"),
        administrator.ask(workload(), signer=f"{DOMAIN}/another"),
    ]

    istiod.sign(workload())  # what came later was answered

    for name in left:
        status = istiod.read(name)
        types = {condition.type for condition in status.conditions or ()}
        assert (status.certificate, "Failed" in types) == (None, False)


def test_two_replicas_and_the_death_of_one_leave_no_request_unanswered(
    site: Site, istiod: Istiod, tmp_path: Path
) -> None:
    environment = dict(site.bridge.environment) | {
        name: f"127.0.0.1:{free_port()}" for name in ("HEALTH_LISTEN", "METRICS_LISTEN")
    }
    with harness.running_bridge(tmp_path, site.hsm.socket, environment) as second:
        second.await_serving()
        with ThreadPoolExecutor(8) as pool:
            first = [pool.submit(istiod.sign, workload()) for _ in range(24)]
            signed = [future.result() for future in first]
            later = [pool.submit(istiod.sign, workload()) for _ in range(8)]
            second.kill()
            signed += [future.result() for future in later]

    assert len(set(signed)) == 32
    issued = site.bridge.log.count("certificate.issued") + second.log.count("certificate.issued")
    assert issued >= 32
    for log in (site.bridge.log, second.log):
        assert "csr.delayed" not in log


def test_a_request_right_after_an_outage_of_the_api_server_is_signed(
    site: Site, istiod: Istiod
) -> None:
    site.kube.stop_apiserver()
    site.bridge.await_log("csr.not_watched")
    site.kube.start_apiserver()

    assert istiod.sign(workload())
    site.bridge.await_log("csr.watched_again")
    assert site.bridge.health() == 1


def test_the_account_may_do_this_and_nothing_else(site: Site) -> None:
    group = "certificates.k8s.io"
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "sign", "approve")
    asked = (
        (group, "certificatesigningrequests", "", ""),
        (group, "certificatesigningrequests", "status", ""),
        (group, "certificatesigningrequests", "approval", ""),
        (group, "signers", "", SIGNER),
        (group, "signers", "", f"{DOMAIN}/another"),
        (group, "signers", "", "kubernetes.io/kubelet-serving"),
        ("", "configmaps", "", "istio-ca-root-cert"),
        ("", "namespaces", "", ""),
        ("", "secrets", "", "istiod-tls"),
        ("", "secrets", "", "istio-ca-cert"),
        ("authentication.k8s.io", "tokenreviews", "", ""),
    )
    reviews = client.AuthorizationV1Api(site.kube.admin_client())
    allowed = set()
    for verb, (api_group, resource, sub, name) in itertools.product(verbs, asked):
        attributes = client.V1ResourceAttributes(
            verb=verb,
            group=api_group,
            resource=resource,
            subresource=sub,
            name=name,
            namespace=site.namespace if not api_group else "",
        )
        review = client.V1SubjectAccessReview(
            spec=client.V1SubjectAccessReviewSpec(
                user=f"system:serviceaccount:{site.namespace}:{ACCOUNT}",
                groups=["system:serviceaccounts", "system:authenticated"],
                resource_attributes=attributes,
            )
        )
        status = reviews.create_subject_access_review(review).status
        if status is not None and status.allowed:
            allowed.add(" ".join(filter(None, (verb, resource, sub, name))))

    assert allowed == {
        "list certificatesigningrequests",
        "watch certificatesigningrequests",
        "update certificatesigningrequests status",
        f"sign signers {SIGNER}",
        "get secrets istio-ca-cert",
        "patch secrets istio-ca-cert",
        "create secrets istio-ca-cert",
        "create secrets istiod-tls",
        "list configmaps istio-ca-root-cert",
        "watch configmaps istio-ca-root-cert",
        "create configmaps istio-ca-root-cert",
        "list namespaces",
        "watch namespaces",
    }


def test_without_the_right_to_sign_the_log_names_it_and_the_request_waits(
    site: Site, istiod: Istiod
) -> None:
    cluster_harness.revoke(site.kube, site.namespace)
    name = istiod.ask(workload())

    site.bridge.await_log(f"csr={name}")

    assert f"sign on signers {SIGNER}" in site.bridge.log
    assert istiod.read(name).certificate is None
    cluster_harness.grant(
        site.kube,
        site.namespace,
        [
            it
            for it in cluster_harness.shipped_rights(RIGHTS, site.namespace)
            if it["kind"].startswith("ClusterRole")
        ],
    )
    assert istiod.certificate(name)
