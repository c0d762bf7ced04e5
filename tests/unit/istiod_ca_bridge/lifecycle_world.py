"""A store, an HSM and a clock that outlive the bridge's processes, which are started on them."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.ca_key import CaKeys, KeyMode
from istiod_ca_bridge.chain_check import ChainCheck
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.errors import BridgeError
from istiod_ca_bridge.lifecycle import Lifecycle, LifecycleSettings
from istiod_ca_bridge.name_constraints import IssuedNames
from istiod_ca_bridge.records import csr_record
from istiod_ca_bridge.replica_report import ReplicaReport
from istiod_ca_bridge.rotation_keeper import RotationKeeper
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import CERTIFICATE_SECRET, CSR_SECRET, ROTATION_SECRET
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    CrashError,
    MemoryKeyService,
    MemoryStore,
    ca_certificate,
    pem,
    recorded_log,
)

if TYPE_CHECKING:
    from istiod_ca_bridge.authority import Authority

WAITING = "Wait until the CA certificate secret istio-system.istio-ca-cert can be loaded..."
ROOT = pki.root(valid_until=pki.MOMENT + timedelta(days=3650))
LONGEST = timedelta(hours=24)


class Readback:
    """Namespaces that hold what they are told to hold."""

    def __init__(self) -> None:
        self.lack: tuple[str, ...] = ()

    async def lacking(self, _roots: Sequence[x509.Certificate]) -> tuple[str, ...]:
        return self.lack


class World:
    """A store and a key service that outlive the process, and the processes started on them."""

    def __init__(
        self,
        mode: KeyMode = KeyMode.RESIDENT,
        algorithm: KeyAlgorithm = KeyAlgorithm.ECDSA_P256,
        trust_domain: str = "cluster.local",
        kek_id: str = "kek",
    ) -> None:
        self.settings = LifecycleSettings(
            kek_id, mode, algorithm, trust_domain, "istio-system", poll_seconds=0.0
        )
        self.store = MemoryStore()
        self.keys = MemoryKeyService(roots=(ROOT.certificate,))
        self.adopted: list[Authority] = []
        self.now = NOW
        self.leads = True
        self.readback = Readback()
        self.reports: tuple[ReplicaReport, ...] = ()
        self.conditions = Conditions(lambda: self.now)
        self.log, self.lines = recorded_log()

    async def run_until(self, text: str, count: int = 1) -> None:
        """Run a new process until its log holds the text, then kill it."""
        before = sum(text in line for line in self.lines)
        task = asyncio.create_task(self._lifecycle().run())
        try:
            async with asyncio.timeout(10):
                while sum(text in line for line in self.lines) < before + count:
                    if task.done():
                        await task
                    await asyncio.sleep(0)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BridgeError, CrashError):
                await task

    async def _reports(self) -> tuple[ReplicaReport, ...]:
        return self.reports

    def _lifecycle(self) -> Lifecycle:
        def clock() -> datetime:
            return self.now

        def leads() -> bool:
            return self.leads

        ca_keys = CaKeys(self.settings.keys, self.store, self.keys, leads, self.log)
        rotation = RotationKeeper(
            self.store,
            self.keys,
            ca_keys,
            ChainCheck(self.keys, IssuedNames(), clock),
            self.readback,
            self._reports,
            LONGEST,
            self.conditions,
            clock,
            self.log,
        )
        return Lifecycle(
            self.settings,
            self.store,
            self.keys,
            self.adopted.append,
            clock,
            self.log,
            leads=leads,
            conditions=self.conditions,
            rotation=rotation,
        )

    def condition(self, kind: Kind) -> tuple[bool, str, str]:
        [found] = [it for it in self.conditions.current() if it.kind is kind]
        return found.status, found.reason, found.message

    def happened(self) -> list[str]:
        return [it.reason for it in self.conditions.take()]

    async def rounds(self, count: int = 6) -> None:
        """Run a new process for a few rounds."""
        done = 0
        before = self.store.on_read

        def note(name: str) -> None:
            nonlocal done
            before(name)
            if name == ROTATION_SECRET:
                done += 1
                if done == count + 1:
                    self.log.info("rounds.over")

        self.store.on_read = note
        try:
            await self.run_until("rounds.over")
        finally:
            self.store.on_read = before

    async def failure(self) -> BridgeError:
        """Run a new process until it stops for good."""
        with pytest.raises(BridgeError) as caught:
            await self.run_until("never")
        return caught.value

    async def csr(self, secret: str = CSR_SECRET) -> x509.CertificateSigningRequest:
        record = csr_record(self.store.secrets[secret], secret)
        return x509.load_pem_x509_csr(
            await self.keys.decrypt(
                record.kek_id, record.encrypted_dek, record.encrypted_csr, record.csr_id.encode()
            )
        )

    async def offer(
        self,
        root: pki.Issued = ROOT,
        *,
        life: timedelta = timedelta(days=30),
        csr_secret: str = CSR_SECRET,
        secret: str = CERTIFICATE_SECRET,
    ) -> bytes:
        csr = await self.csr(csr_secret)
        key = csr.public_key()
        assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        chain = pem(ca_certificate(key, root, not_after=self.now + life), root.certificate)
        self.store.secrets[secret] = {"cert-chain.pem": chain}
        return chain
