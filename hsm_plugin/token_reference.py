"""Which token is meant: by its label, or by the attributes of a PKCS#11 URI; one, or several."""

from dataclasses import dataclass

from hsm_plugin import pkcs11_uri
from hsm_plugin.errors import BadRequestError
from hsm_plugin.pkcs11_uri import Pkcs11Uri

MAX_TOKENS = 8
SEPARATOR = ","


@dataclass(frozen=True, slots=True)
class TokenReference:
    """What a token must be to be meant."""

    text: str
    """As it was written; messages show it."""
    uri: Pkcs11Uri

    def matches(self, *, label: str, serial: str, manufacturer: str, model: str, slot: int) -> bool:
        """Tell whether every attribute given is the token's."""
        wanted = self.uri
        return (
            wanted.token in (None, label)
            and wanted.serial in (None, serial)
            and wanted.manufacturer in (None, manufacturer)
            and wanted.model in (None, model)
            and wanted.slot_id in (None, slot)
        )

    def __str__(self) -> str:
        """Return words for a message: which token is looked for."""
        return self.text if pkcs11_uri.is_uri(self.text) else f'the label "{self.text}"'

    @property
    def name(self) -> str:
        """Return the shortest name: the label, the serial number, or what was written."""
        return self.uri.token or self.uri.serial or self.text


def parse(text: str) -> TokenReference:
    """Return one reference; BadRequestError when it cannot name a token."""
    if not pkcs11_uri.is_uri(text):
        if not text:
            raise BadRequestError(
                "a token's label is empty", hint=f"write labels or URIs, with {SEPARATOR} between"
            )
        return TokenReference(text, Pkcs11Uri(token=text))
    uri = pkcs11_uri.parse(text)
    if uri.names_object:
        raise BadRequestError(
            "the PKCS#11 URI of a token names an object",
            hint="leave object, id and type out; keys are found by their label and id",
        )
    if not uri.token and not uri.serial:
        raise BadRequestError(
            "the PKCS#11 URI names no token: it has neither token nor serial",
            hint="give token= or serial=, since slot ids change when an HSM joins or leaves",
        )
    return TokenReference(text, uri)


def parse_list(text: str) -> tuple[TokenReference, ...]:
    """Return the references in their order, the preferred one first.

    A comma stands between two; one inside a label is written %2C, in a URI.
    """
    references = tuple(parse(part.strip()) for part in text.split(SEPARATOR))
    if len(references) > MAX_TOKENS:
        raise BadRequestError(
            f"{len(references)} tokens are named", hint=f"at most {MAX_TOKENS} are tried in turn"
        )
    if len({reference.uri for reference in references}) < len(references):
        raise BadRequestError("a token is named twice", hint="name each token once")
    return references
