"""What the token says of its keys: who may ever see them, and where they were made."""

from hsm_plugin.cryptoki import Cryptoki
from hsm_plugin.keys import KEK_LABEL, SIGNING_KEY_LABEL, CbcLabels, InspectedKey
from hsm_plugin.pkcs11_store_constants import Attribute, ObjectClass
from hsm_plugin.pkcs11_store_objects import search

_ATTRIBUTES = (
    *(Attribute.ID, Attribute.SENSITIVE, Attribute.EXTRACTABLE),
    *(Attribute.NEVER_EXTRACTABLE, Attribute.LOCAL),
)
_MAX_KEYS = 512


def inspect(cryptoki: Cryptoki, session: int, labels: CbcLabels) -> list[InspectedKey]:
    """Return the KEKs and the signing keys' private halves, at most some hundreds."""
    searches = (
        *((ObjectClass.SECRET_KEY, label) for label in (KEK_LABEL, labels.kek, labels.mac)),
        (ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL),
    )
    found = [
        (label, handle)
        for kind, label in searches
        for handle in cryptoki.find(session, search(kind, label))
    ]
    keys = []
    for label, handle in found[:_MAX_KEYS]:
        key_id, *flags = cryptoki.read(session, handle, _ATTRIBUTES)
        sensitive, extractable, never_extractable, local = (flag == b"\1" for flag in flags)
        keys.append(InspectedKey(key_id, label, sensitive, extractable, never_extractable, local))
    return keys
