"""A token as its own driver shows it: what the plugin left there, seen without the plugin."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass, TokenFlag

from hsm_plugin.cryptoki import Cryptoki
from hsm_plugin.keys import Sealed
from tests.support.softhsm import SoftHsm


@dataclass(frozen=True, slots=True)
class TokenView:
    """An open session; use it before another view or store of this process opens."""

    session: Any

    def objects(self, kind: ObjectClass, object_id: bytes | None = None) -> list[Any]:
        """Return the objects of a kind, with this id when one is given."""
        template: dict[Attribute, Any] = {Attribute.CLASS: kind}
        if object_id is not None:
            template[Attribute.ID] = object_id
        return list(self.session.get_objects(template))

    def the(self, kind: ObjectClass, object_id: bytes) -> Any:
        """Return the one object of this kind and id."""
        [found] = self.objects(kind, object_id)
        return found

    def decrypt(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """Return the plaintext of an AES-GCM encryption by a KEK."""
        parameters = pkcs11.GCMParams.__new__(pkcs11.GCMParams)  # its constructor takes 12 bytes
        parameters.nonce, parameters.aad, parameters.tag_bits = sealed.iv, aad, 128
        kek = self.the(ObjectClass.SECRET_KEY, kek_id)
        return bytes(
            kek.decrypt(
                sealed.ciphertext + sealed.tag,
                mechanism=Mechanism.AES_GCM,
                mechanism_param=parameters,
            )
        )


@contextmanager
def viewed(hsm: SoftHsm) -> Iterator[TokenView]:
    """The token of a configuration, logged in, in this process."""
    with _initialised(hsm) as library:
        [token] = list(library.get_tokens(token_label=hsm.label))
        yield TokenView(token.open(rw=True, user_pin=hsm.pin))


def counts_a_wrong_pin(hsm: SoftHsm) -> bool:
    """Return whether the token says that a wrong PIN was tried since the last right one."""
    with _initialised(hsm) as library:
        [token] = list(library.get_tokens(token_label=hsm.label))
        return bool(token.flags & TokenFlag.USER_PIN_COUNT_LOW)


@contextmanager
def _initialised(hsm: SoftHsm) -> Iterator[Any]:
    """The module in this process, on the tokens of one configuration."""
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(hsm.config)
    module = Cryptoki(hsm.module)
    try:
        library = pkcs11.lib(hsm.module)
        module.restart()
        yield library
    finally:
        module.stop()
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
