"""A CA key and its CSR in a slot of Secrets: made once, read ever after.

Each step reads what is there before it makes anything, and writes one Secret whole. A key or a
CSR is never made anew over an old one, and only the leader makes any.
"""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from istiod_ca_bridge.csr import certification_request, check_request
from istiod_ca_bridge.errors import (
    ConfigError,
    CorruptSecretError,
    KeyServiceRefusedError,
    LeaderAwaitedError,
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
from istiod_ca_bridge.signer import RSA_BITS, KeyAlgorithm, Signer, algorithm_of, key_der
from istiod_ca_bridge.store import SecretStore, Slot


class KeyMode(Enum):
    """Where the CA's private key is when it signs."""

    RESIDENT = "resident"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What the operator chose for CA keys."""

    kek_id: str
    mode: KeyMode
    algorithm: KeyAlgorithm
    """Of a key made anew; a key that exists stays as it is."""

    trust_domain: str


class CaKeys:
    """Makes, opens and certifies CA keys."""

    def __init__(
        self,
        settings: KeySettings,
        store: SecretStore,
        keys: KeyService,
        leads: Callable[[], bool],
        log: EventLog,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._leads = leads
        self._log = log

    async def ready(
        self, slot: Slot, algorithm: KeyAlgorithm | None = None
    ) -> tuple[KeyRecord, Signer]:
        """Return the slot's key, made by the leader when there never was one.

        Raises CorruptSecretError or ConfigError when only an operator can help,
        LeaderAwaitedError when another replica is to make it.
        """
        values = await self._store.read(slot.key)
        requested = await self._store.read(slot.csr) is not None
        certified = await self._store.read(slot.certificate) is not None
        if values is None and (requested or certified):
            raise CorruptSecretError(
                f"{slot.key} is missing, though "
                f"{slot.csr if requested else slot.certificate} exists: the CA key is lost",
                hint=f"restore {slot.key}, or delete the other Secrets for a new CA key",
            )
        finished = requested or certified
        if not finished and not self._leads():
            raise LeaderAwaitedError(f"the leader makes the CA key of {slot.key}")
        wanted = algorithm or self._settings.algorithm
        record = await self._new(slot, wanted) if values is None else key_record(values, slot.key)
        signer = await self._opened(slot, record, may_make=not finished)
        if (kept := algorithm_of(signer.public_key)) is not None and kept is not wanted:
            self._log.warning(
                "ca_key.algorithm_kept", algorithm=kept.value, configured=wanted.value
            )
        return record, signer

    async def opened(self, slot: Slot, values: Mapping[str, bytes]) -> tuple[KeyRecord, Signer]:
        """Return the key of a Secret that was read; it is never made."""
        record = key_record(values, slot.key)
        return record, await self._opened(slot, record, may_make=False)

    async def request(self, slot: Slot, key: KeyRecord, signer: Signer) -> None:
        """Return when the slot holds a CSR of the key, or a certificate instead."""
        values = await self._store.read(slot.csr)
        if values is not None:
            await self._check_request(slot, csr_record(values, slot.csr), signer)
        elif await self._store.read(slot.certificate) is None:
            if not self._leads():
                raise LeaderAwaitedError(f"the leader writes {slot.csr}")
            record = await self.new_request(key, signer)
            await self._store.create(slot.csr, record.values())
            self._log.info("ca_csr.written", secret=slot.csr, csr_id=record.csr_id)

    async def new_request(self, key: KeyRecord, signer: Signer) -> CsrRecord:
        """Return a fresh CSR of the key, encrypted under its DEK."""
        csr_id = self._settings.trust_domain
        csr = await certification_request(signer, csr_id)
        encrypted = await self._keys.encrypt(key.kek_id, key.encrypted_dek, csr, csr_id.encode())
        return CsrRecord(key.kek_id, key.encrypted_dek, csr_id, encrypted)

    async def _new(self, slot: Slot, algorithm: KeyAlgorithm) -> KeyRecord:
        """Write the record of a key: a resident one's id is on record before it is made."""
        kek_id = self._settings.kek_id
        encrypted_dek = await self._keys.generate_dek(kek_id)
        record: KeyRecord
        if self._settings.mode is KeyMode.RESIDENT:
            record = ResidentKey(kek_id, encrypted_dek, f"istio-ca-{uuid.uuid4()}", algorithm)
        else:
            bits = RSA_BITS[algorithm]
            sealed = await self._keys.generate_sealed_key(kek_id, encrypted_dek, bits)
            record = SealedKey(kek_id, encrypted_dek, sealed)
        await self._store.create(slot.key, record.values())
        self._log.info("ca_key.recorded", secret=slot.key, mode=self._settings.mode.value)
        return record

    async def _opened(self, slot: Slot, record: KeyRecord, *, may_make: bool) -> Signer:
        self._check_settings(slot, record)
        signer: Signer
        try:
            if isinstance(record, SealedKey):
                signer = await self._keys.unseal(record)
            elif may_make:
                signer = await self._keys.make_resident(record)
            else:
                signer = await self._keys.open_resident(record)
        except KeyServiceRefusedError as error:
            raise CorruptSecretError(
                f"{slot.key} cannot be used: {error}",
                hint="restore the Secret from a backup; it is never made anew over an old one",
            ) from error
        if (algorithm := algorithm_of(signer.public_key)) is None:
            raise CorruptSecretError(f"{slot.key} holds a key that no CA may have")
        self._log.info(
            "ca_key.ready",
            mode=self._settings.mode.value,
            algorithm=algorithm.value,
            public_key_sha256=hashlib.sha256(key_der(signer.public_key)).hexdigest(),
        )
        return signer

    def _check_settings(self, slot: Slot, record: KeyRecord) -> None:
        mode = KeyMode.SEALED if isinstance(record, SealedKey) else KeyMode.RESIDENT
        if mode is not self._settings.mode:
            raise ConfigError(
                f"the CA key in {slot.key} is {mode.value}, and CA_KEY_MODE asks for "
                f"{self._settings.mode.value}",
                hint=f"set CA_KEY_MODE={mode.value}; another mode needs a new CA key",
            )
        if record.kek_id != self._settings.kek_id:
            raise ConfigError(
                f"{slot.key} was made under another KEK than KEY_MANAGEMENT_KEY_ID names",
                hint=f"set KEY_MANAGEMENT_KEY_ID={record.kek_id}",
            )

    async def _check_request(self, slot: Slot, record: CsrRecord, signer: Signer) -> None:
        if record.csr_id != self._settings.trust_domain:
            raise ConfigError(
                f"{slot.csr} is of trust domain {record.csr_id}, and TRUST_DOMAIN is "
                f"{self._settings.trust_domain}",
                hint=f"set TRUST_DOMAIN={record.csr_id}",
            )
        try:
            csr = await self._keys.decrypt(
                record.kek_id, record.encrypted_dek, record.encrypted_csr, record.csr_id.encode()
            )
        except KeyServiceRefusedError as error:
            raise CorruptSecretError(
                f"{slot.csr} cannot be decrypted: {error}",
                hint="restore the Secret from a backup, or delete it for a new CSR of this key",
            ) from error
        check_request(csr, signer.public_key)
