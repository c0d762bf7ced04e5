"""The implementations of KeyStore that the contract suite runs on.

To add one: a context manager that opens it on a SoftHSM2 token, and its name in OPENERS.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.keys import KeyStore
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from tests.support.faults import FaultyHsm, GcmIvOf, make_faulty
from tests.support.softhsm import SoftHsm

Opener = Callable[[SoftHsm], AbstractContextManager[KeyStore]]


@contextmanager
def pkcs11_store(hsm: SoftHsm) -> Iterator[KeyStore]:
    """The store in this process."""
    with _opened(hsm, hsm.module, {"SOFTHSM2_CONF": str(hsm.config)}, GcmIv.AUTO) as store:
        yield store


@contextmanager
def fips_pkcs11_store(hsm: SoftHsm) -> Iterator[KeyStore]:
    """The store on a token that makes the IVs of AES-GCM itself, as an HSM in FIPS mode does."""
    faulty = make_faulty(hsm)
    faulty.make_gcm_ivs(GcmIvOf.TOKEN)
    with faulty_pkcs11_store(faulty) as store:
        yield store


@contextmanager
def faulty_pkcs11_store(faulty: FaultyHsm, gcm_iv: GcmIv = GcmIv.AUTO) -> Iterator[Pkcs11Store]:
    """The store in this process, on a token that fails on command."""
    hsm = faulty.hsm
    module = hsm.folder / "faulty.so"  # a copy is loaded anew, and so takes this token's faults
    if not module.exists():
        shutil.copyfile(faulty.module, module)
    with _opened(hsm, str(module), faulty.environment(), gcm_iv) as store:
        yield store


@contextmanager
def _opened(
    hsm: SoftHsm, module: str, environment: Mapping[str, str], gcm_iv: GcmIv
) -> Iterator[Pkcs11Store]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    store = Pkcs11Store(
        module,
        hsm.label,
        hsm.pin_file.read_text,
        PinGuard(hsm.folder / "pin-guard.json"),
        gcm_iv=gcm_iv,
    )
    try:
        store.connect()
        yield store
    finally:
        store.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


OPENERS: dict[str, Opener] = {"pkcs11": pkcs11_store, "pkcs11-fips": fips_pkcs11_store}
