"""Who makes the IV of AES-GCM under a KEK, and where it stands in what the token answers.

An HSM in FIPS mode makes the IV itself: it is given none, and appends its own to the output
(Luna 7: ciphertext, tag, IV). Some take the caller's, replace it, and append what they used. So
the output's length decides: what stands behind the tag is the IV.
"""

from enum import Enum

from hsm_plugin.envelope import DEK_IV_BYTES, KEK_IV_BYTES, TAG_BYTES
from hsm_plugin.errors import UnsupportedError
from hsm_plugin.keys import Sealed


class GcmIv(Enum):
    """Who makes the IV."""

    CALLER = "caller"
    TOKEN = "token"  # noqa: S105 - a token is a device here
    AUTO = "auto"
    """The caller; the token where it refuses the caller's."""


def sealed_of(output: bytes, plaintext_bytes: int, given: bytes | None) -> Sealed:
    """Return the parts of C_Encrypt's output. `given`: the IV that the token was given."""
    end_of_tag = plaintext_bytes + TAG_BYTES
    appended = output[end_of_tag:]
    iv = appended or given
    if len(output) < end_of_tag or iv is None or len(iv) not in (DEK_IV_BYTES, KEK_IV_BYTES):
        behind = len(output) - plaintext_bytes
        raise UnsupportedError(
            f"the token answered {behind} bytes more than the plaintext for AES-GCM: neither a tag "
            "of 16 bytes, nor a tag and its IV",
            hint="try --gcm-iv caller, or --algorithm aes-cbc",
        )
    return Sealed(
        iv=iv, ciphertext=output[:plaintext_bytes], tag=output[plaintext_bytes:end_of_tag]
    )
