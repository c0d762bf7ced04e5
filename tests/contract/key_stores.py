"""The implementations of KeyStore that the contract suite runs on.

To add one: a context manager that opens it on a SoftHSM2 token, and its name in OPENERS.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from hsm_plugin.keys import KeyStore
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from tests.support.softhsm import SoftHsm

Opener = Callable[[SoftHsm], AbstractContextManager[KeyStore]]


@contextmanager
def pkcs11_store(hsm: SoftHsm) -> Iterator[KeyStore]:
    """The store in this process."""
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(hsm.config)
    store = Pkcs11Store(
        hsm.module,
        hsm.label,
        hsm.pin_file.read_text,
        PinGuard(hsm.folder / "pin-guard.json"),
    )
    try:
        store.connect()
        yield store
    finally:
        store.close()
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


OPENERS: dict[str, Opener] = {"pkcs11": pkcs11_store}
