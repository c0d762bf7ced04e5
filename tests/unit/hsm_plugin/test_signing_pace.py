"""A batch is cut by how fast the token signs."""

import pytest

from hsm_plugin.keys import SignatureAlgorithm
from hsm_plugin.signing_pace import SLOW_SECONDS, SigningPace

FAST, SLOW = SignatureAlgorithm.ECDSA_SHA256, SignatureAlgorithm.RSA_PKCS1_SHA256


@pytest.fixture
def pace() -> SigningPace:
    pace = SigningPace(threads=8)
    pace.note(FAST, SLOW_SECONDS / 2)
    pace.note(SLOW, SLOW_SECONDS * 2)
    return pace


@pytest.mark.parametrize("count", [1, 8, 256])
def test_a_fast_token_gets_a_batch_whole(pace: SigningPace, count: int) -> None:
    assert pace.packet_size(FAST, count) == count


@pytest.mark.parametrize(("count", "size"), [(1, 1), (8, 1), (9, 2), (64, 8), (256, 16)])
def test_a_slow_tokens_batch_is_spread_over_the_threads(
    pace: SigningPace, count: int, size: int
) -> None:
    assert pace.packet_size(SLOW, count) == size
    assert SigningPace(threads=8).packet_size(FAST, count) == size  # not known yet


def test_one_slow_answer_does_not_make_a_token_slow_but_many_do(pace: SigningPace) -> None:
    pace.note(FAST, SLOW_SECONDS)
    assert pace.packet_size(FAST, 256) == 256
    for _ in range(50):
        pace.note(FAST, SLOW_SECONDS * 2)
    assert pace.packet_size(FAST, 256) == 16
