"""Which key of the token is meant: by its id, or by a PKCS#11 URI that holds the id."""

from enum import Enum

from hsm_plugin import pkcs11_uri
from hsm_plugin.errors import BadRequestError
from hsm_plugin.keys import CBC_KEK_LABEL, KEK_LABEL, SIGNING_KEY_LABEL
from hsm_plugin.pkcs11_uri import ObjectType


class KeyUse(Enum):
    """What a key is for."""

    KEK = "wrapping"
    SIGNING = "signing"

    @property
    def labels(self) -> tuple[str, ...]:
        """CKA_LABEL of such keys."""
        return (KEK_LABEL, CBC_KEK_LABEL) if self is KeyUse.KEK else (SIGNING_KEY_LABEL,)

    @property
    def types(self) -> tuple[ObjectType, ...]:
        """What a URI may say as their `type`."""
        if self is KeyUse.KEK:
            return (ObjectType.SECRET_KEY,)
        return (ObjectType.PRIVATE, ObjectType.PUBLIC)


def key_id(text: str, use: KeyUse) -> bytes:
    """Return the id (CKA_ID) that is meant; BadRequestError for a URI that means something else.

    A URI of another program may say the token too. The plugin's tokens are those that it was
    started with, so such attributes are refused rather than passed over.
    """
    if not pkcs11_uri.is_uri(text):
        return text.encode(errors="surrogateescape")  # as the shell gave it
    uri = pkcs11_uri.parse(text)
    if uri.id is None:
        raise BadRequestError(
            "the PKCS#11 URI of a key has no id",
            hint="add id=, as other clients of the token print it",
        )
    if uri.names_token:
        raise BadRequestError(
            "the PKCS#11 URI of a key names a token",
            hint="leave token, serial, manufacturer, model and slot-id out: P11_TOKEN of the "
            "plugin says which token is used",
        )
    if uri.type is not None and uri.type not in use.types:
        raise BadRequestError(
            f"the PKCS#11 URI names an object of type {uri.type.value}",
            hint=f"expected is {' or '.join(kind.value for kind in use.types)}",
        )
    if uri.object is not None and uri.object not in use.labels:
        raise BadRequestError(
            "the PKCS#11 URI names an object of another label",
            hint=f"expected is {' or '.join(use.labels)}, or leave object out",
        )
    return uri.id
