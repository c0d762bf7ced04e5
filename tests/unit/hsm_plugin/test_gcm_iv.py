"""What a token answers for AES-GCM is split by lengths alone, and never guessed at."""

import pytest

from hsm_plugin.errors import UnsupportedError
from hsm_plugin.gcm_iv import sealed_of
from hsm_plugin.keys import Sealed

TEXT, TAG, GIVEN, MADE = b"ciphertext", b"t" * 16, b"g" * 16, b"m" * 16


@pytest.mark.parametrize(
    ("behind", "given", "iv"),
    [
        (TAG, GIVEN, GIVEN),
        (TAG + MADE, None, MADE),
        (TAG + MADE, GIVEN, MADE),
        (TAG + MADE[:12], None, MADE[:12]),
    ],
)
def test_what_stands_behind_the_tag_is_the_iv(
    behind: bytes, given: bytes | None, iv: bytes
) -> None:
    assert sealed_of(TEXT + behind, len(TEXT), given) == Sealed(iv, TEXT, TAG)
    assert sealed_of(behind, 0, given) == Sealed(iv, b"", TAG)


@pytest.mark.parametrize(
    ("behind", "given"),
    [
        (b"", GIVEN),
        (TAG[:15], GIVEN),
        (TAG + MADE[:1], GIVEN),
        (TAG + MADE[:15], GIVEN),
        (TAG + MADE + b"m", None),
        (TAG, None),
        (TAG, b""),
    ],
)
def test_another_length_is_refused(behind: bytes, given: bytes | None) -> None:
    with pytest.raises(UnsupportedError, match=f"answered {len(behind)} bytes more") as caught:
        sealed_of(TEXT + behind, len(TEXT), given)
    assert "--gcm-iv" in caught.value.hint
