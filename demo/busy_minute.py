"""What befalls a mesh while its dashboard is drawn: renewals, wrong callers, a herd, an outage."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from chaos import site
from chaos.endpoints import OPTIONS
from chaos.sidecars import CA_NAME, Load, Tally
from istio_hsm_proto import istio_ca_pb2 as ca
from istio_hsm_proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.integration.istiod_ca_bridge.harness import csr_of
from tests.support.faults import ON_THE_TOKEN, Ckr

SIDECARS = 9
_PAUSE_SECONDS = 0.4
_WRONG_EVERY_SECONDS = 0.7
_HERD_CONNECTIONS, _HERD_CALLS = 8, 100
_CALL_SECONDS = 30.0
_SLOW_US = 20_000
_HERD_AT, _OUTAGE_FROM, _OUTAGE_UNTIL = 0.3, 0.6, 0.7
"""Parts of the whole time."""


@dataclass(frozen=True, slots=True)
class BusyMinute:
    """Time that passes at a site."""

    mesh: site.Site
    token: str
    csr: str
    over: threading.Event

    def pass_by(self, seconds: float) -> None:
        """Return when it is over, or somewhat later: the herd is answered first."""
        self.over.wait(_HERD_AT * seconds)
        self.mesh.hsm.delay(_SLOW_US, "C_Sign")
        with ThreadPoolExecutor(_HERD_CONNECTIONS) as herd:
            for _ in range(_HERD_CONNECTIONS):  # all to one replica, where they have to wait
                herd.submit(self._ask, self.mesh.addresses[0], self.token, self.csr, _HERD_CALLS)
        self.mesh.hsm.delay(0, "C_Sign")
        self.over.wait((_OUTAGE_FROM - _HERD_AT) * seconds)
        self.mesh.hsm.refuse(Ckr.DEVICE_ERROR, *ON_THE_TOKEN)
        self.over.wait((_OUTAGE_UNTIL - _OUTAGE_FROM) * seconds)
        self.mesh.hsm.heal()
        self.over.wait((1 - _OUTAGE_UNTIL) * seconds)

    def refused(self) -> None:
        """Ask for what nobody gets, again and again: with a wrong token, and for garbage."""
        wrong = itertools.cycle([("no-token", self.csr), (self.token, "garbage")])
        for address, (token, csr) in zip(itertools.cycle(self.mesh.addresses), wrong, strict=False):
            if self.over.wait(_WRONG_EVERY_SECONDS):
                return
            self._ask(address, token, csr, 1)

    def _ask(self, address: str, token: str, csr: str, calls: int) -> None:
        """Make so many calls at once over one connection, however they end."""
        credentials = grpc.ssl_channel_credentials(self.mesh.root.pem)
        options = (("grpc.ssl_target_name_override", CA_NAME), *OPTIONS)
        metadata = (("clusterid", "Kubernetes"), ("authorization", f"Bearer {token}"))
        request = ca.IstioCertificateRequest(csr=csr, validity_duration=3600)
        with grpc.secure_channel(address, credentials, options) as channel:
            stub = IstioCertificateServiceStub(channel)
            begun = [
                stub.CreateCertificate.future(request, metadata=metadata, timeout=_CALL_SECONDS)
                for _ in range(calls)
            ]
            for call in begun:
                call.exception()


@contextmanager
def busy(mesh: site.Site) -> Iterator[BusyMinute]:
    """Yield the time to pass, with sidecars that renew and callers that are refused."""
    over, tally = threading.Event(), Tally()
    endpoints = mesh.endpoints()
    sidecars = site.sidecars(mesh, SIDECARS, endpoints, tally, _PAUSE_SECONDS, over)
    csr = csr_of(ec.generate_private_key(ec.SECP256R1()))
    minute = BusyMinute(mesh, sidecars[0].token, csr, over)
    load = Load(sidecars, over)
    refused = threading.Thread(target=minute.refused, daemon=True)
    endpoints.start()
    load.start()
    refused.start()
    try:
        yield minute
    finally:
        over.set()
        mesh.hsm.heal()
        load.stop()
        refused.join()
        endpoints.stop()
