"""The CA key's state machine: no key -> key -> CSR -> waiting -> serving.

Each step reads what is there before it makes anything, and writes one Secret whole, so the
process may die anywhere and the next one goes on. A Secret that exists and cannot be used
stops the process: a key or a CSR is never made anew over an old one.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeVar

from cryptography.hazmat.primitives import serialization

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import CaChain, checked_chain, name_of
from istiod_ca_bridge.csr import certification_request, check_request
from istiod_ca_bridge.errors import (
    BridgeError,
    ConfigError,
    CorruptSecretError,
    KeyServiceNotPreparedError,
    KeyServiceRefusedError,
    KeyServiceUnavailableError,
    RefusedChainError,
    SecretExistsError,
    StoreUnavailableError,
)
from istiod_ca_bridge.key_service import KeyService
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.records import (
    CsrRecord,
    KeyRecord,
    ResidentKey,
    SealedKey,
    csr_record,
    key_record,
)
from istiod_ca_bridge.signer import RSA_BITS, KeyAlgorithm, Signer, algorithm_of
from istiod_ca_bridge.store import (
    CERTIFICATE_SECRET,
    CHAIN_KEY,
    CSR_SECRET,
    KEY_SECRET,
    SecretStore,
)

T = TypeVar("T")


class KeyMode(Enum):
    """Where the CA's private key is when it signs."""

    RESIDENT = "resident"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class LifecycleSettings:
    """What the operator chose."""

    kek_id: str
    mode: KeyMode
    algorithm: KeyAlgorithm
    """Of a key made anew; a key that exists stays as it is."""

    trust_domain: str
    namespace: str
    poll_seconds: float = 2.0


class Lifecycle:
    """Runs the state machine and hands over each authority that may serve."""

    def __init__(
        self,
        settings: LifecycleSettings,
        store: SecretStore,
        keys: KeyService,
        adopt: Callable[[Authority], None],
        clock: Callable[[], datetime],
        log: EventLog,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._adopt = adopt
        self._clock = clock
        self._log = log
        self._last_trouble = ""

    async def run(self) -> None:
        """Go through the stages, then watch the chain for ever.

        Raises CorruptSecretError, ConfigError or KeyServiceRefusedError when only an operator
        can help; everything passing is waited out.
        """
        record, signer = await self._persistently(self._key)
        await self._persistently(lambda: self._request(record, signer))
        await self._watch_chain(signer)

    async def _key(self) -> tuple[KeyRecord, Signer]:
        values = await self._store.read(KEY_SECRET)
        requested = await self._store.read(CSR_SECRET) is not None
        certified = await self._store.read(CERTIFICATE_SECRET) is not None
        if values is None and (requested or certified):
            raise CorruptSecretError(
                f"{KEY_SECRET} is missing, though "
                f"{CSR_SECRET if requested else CERTIFICATE_SECRET} exists: the CA key is lost",
                hint=f"restore {KEY_SECRET}, or delete the other Secrets for a new CA key",
            )
        record = key_record(values) if values is not None else await self._new_key()
        self._check_settings(record)
        try:
            signer = await self._open(record, may_make=not (requested or certified))
        except KeyServiceRefusedError as error:
            raise CorruptSecretError(
                f"{KEY_SECRET} cannot be used: {error}",
                hint="restore the Secret from a backup; it is never made anew over an old one",
            ) from error
        algorithm = algorithm_of(signer.public_key)
        if algorithm is None:
            raise CorruptSecretError(f"{KEY_SECRET} holds a key that no CA may have")
        if algorithm is not self._settings.algorithm:
            self._log.warning(
                "ca_key.algorithm_kept",
                algorithm=algorithm.value,
                configured=self._settings.algorithm.value,
            )
        self._log.info("ca_key.ready", mode=self._settings.mode.value, algorithm=algorithm.value)
        return record, signer

    async def _new_key(self) -> KeyRecord:
        """Write the record of a key: a resident one's id is on record before it is made."""
        kek_id = self._settings.kek_id
        encrypted_dek = await self._keys.generate_dek(kek_id)
        record: KeyRecord
        if self._settings.mode is KeyMode.RESIDENT:
            record = ResidentKey(
                kek_id, encrypted_dek, f"istio-ca-{uuid.uuid4()}", self._settings.algorithm
            )
        else:
            bits = RSA_BITS[self._settings.algorithm]
            sealed = await self._keys.generate_sealed_key(kek_id, encrypted_dek, bits)
            record = SealedKey(kek_id, encrypted_dek, sealed)
        await self._store.create(KEY_SECRET, record.values())
        self._log.info("ca_key.recorded", secret=KEY_SECRET, mode=self._settings.mode.value)
        return record

    async def _open(self, record: KeyRecord, *, may_make: bool) -> Signer:
        if isinstance(record, SealedKey):
            return await self._keys.unseal(record)
        if may_make:
            return await self._keys.make_resident(record)
        return await self._keys.open_resident(record)

    def _check_settings(self, record: KeyRecord) -> None:
        mode = KeyMode.SEALED if isinstance(record, SealedKey) else KeyMode.RESIDENT
        if mode is not self._settings.mode:
            raise ConfigError(
                f"the CA key in {KEY_SECRET} is {mode.value}, and CA_KEY_MODE asks for "
                f"{self._settings.mode.value}",
                hint=f"set CA_KEY_MODE={mode.value}; another mode needs a new CA key",
            )
        if record.kek_id != self._settings.kek_id:
            raise ConfigError(
                f"{KEY_SECRET} was made under another KEK than KEY_MANAGEMENT_KEY_ID names",
                hint=f"set KEY_MANAGEMENT_KEY_ID={record.kek_id}",
            )

    async def _request(self, key: KeyRecord, signer: Signer) -> None:
        values = await self._store.read(CSR_SECRET)
        if values is not None:
            await self._check_request(csr_record(values), signer)
            return
        if await self._store.read(CERTIFICATE_SECRET) is not None:
            return
        csr_id = self._settings.trust_domain
        csr = await certification_request(signer, csr_id)
        encrypted = await self._keys.encrypt(key.kek_id, key.encrypted_dek, csr, csr_id.encode())
        record = CsrRecord(key.kek_id, key.encrypted_dek, csr_id, encrypted)
        await self._store.create(CSR_SECRET, record.values())
        self._log.info("ca_csr.written", secret=CSR_SECRET, csr_id=csr_id)

    async def _check_request(self, record: CsrRecord, signer: Signer) -> None:
        if record.csr_id != self._settings.trust_domain:
            raise ConfigError(
                f"{CSR_SECRET} is of trust domain {record.csr_id}, and TRUST_DOMAIN is "
                f"{self._settings.trust_domain}",
                hint=f"set TRUST_DOMAIN={record.csr_id}",
            )
        try:
            csr = await self._keys.decrypt(
                record.kek_id, record.encrypted_dek, record.encrypted_csr, record.csr_id.encode()
            )
        except KeyServiceRefusedError as error:
            raise CorruptSecretError(
                f"{CSR_SECRET} cannot be decrypted: {error}",
                hint="restore the Secret from a backup, or delete it for a new CSR of this key",
            ) from error
        check_request(csr, signer.public_key)

    async def _watch_chain(self, signer: Signer) -> None:
        served = b""
        while True:
            try:
                served = await self._look_at_chain(signer, served)
                self._last_trouble = ""
            except (RefusedChainError, KeyServiceUnavailableError, StoreUnavailableError) as error:
                self._trouble(
                    "ca_chain.refused"
                    if isinstance(error, RefusedChainError)
                    else "ca_chain.not_checked",
                    error,
                )
            if not served:
                self._log.info(
                    "Wait until the CA certificate secret "
                    f"{self._settings.namespace}.{CERTIFICATE_SECRET} can be loaded..."
                )
            await asyncio.sleep(self._settings.poll_seconds)

    async def _look_at_chain(self, signer: Signer, served: bytes) -> bytes:
        values = await self._store.read(CERTIFICATE_SECRET)
        pem = (values or {}).get(CHAIN_KEY, b"")
        if not pem:
            if served:
                raise RefusedChainError(f"{CERTIFICATE_SECRET} is gone; the CA keeps its chain")
            return b""
        if pem == served:
            return served
        chain = checked_chain(pem, signer.public_key, self._clock())
        await self._verify(chain)
        self._adopt(authority(chain, signer))
        self._tell(chain)
        return pem

    async def _verify(self, chain: CaChain) -> None:
        """Return when the HSM's own root ends the path, and every further root is one too."""
        path = [*chain.intermediates, chain.roots[0]]
        ders = [entry.public_bytes(serialization.Encoding.DER) for entry in reversed(path)]
        try:
            await self._keys.verify_chain(ders)
            for root in chain.roots[1:]:
                await self._keys.verify_chain([root.public_bytes(serialization.Encoding.DER)])
        except KeyServiceRefusedError as error:
            raise RefusedChainError(
                f"the HSM plugin refuses the chain: {error}", hint=error.hint
            ) from error

    def _tell(self, chain: CaChain) -> None:
        for title, certificates in (
            ("CA cert:", (chain.ca,)),
            ("intermediate certs:", chain.intermediates),
            ("root cert:", chain.roots),
        ):
            for entry in certificates:
                self._log.info(
                    title,
                    subject=name_of(entry).strip('"'),
                    serial=f"{entry.serial_number:x}",
                    not_after=entry.not_valid_after_utc,
                )

    async def _persistently(self, step: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                result = await step()
            except SecretExistsError:
                continue
            except (KeyServiceUnavailableError, StoreUnavailableError) as error:
                self._trouble(
                    "ca_key.not_prepared"
                    if isinstance(error, KeyServiceNotPreparedError)
                    else "ca_key.delayed",
                    error,
                )
                await asyncio.sleep(self._settings.poll_seconds)
            else:
                self._last_trouble = ""
                return result

    def _trouble(self, event: str, error: BridgeError) -> None:
        """Tell each trouble once, until it changes or passes."""
        if str(error) != self._last_trouble:
            self._last_trouble = str(error)
            self._log.warning(event, reason=str(error), hint=error.hint)
