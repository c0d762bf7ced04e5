"""Where the frames end, however the bytes of a connection are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiod_ca_bridge.frame_ends import GOAWAY, FrameEnds


def frame(payload: bytes, kind: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + payload


@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_however_it_is_cut_the_last_end_in_each_piece_is_where_a_frame_ends(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream, ends = b"", set()
    for payload in payloads:
        stream += frame(payload)
        ends.add(len(stream))
    marks = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames = FrameEnds()
    for start, stop in itertools.pairwise(marks):
        found = frames.follow(stream[start:stop])
        here = [end - start for end in ends if start < end <= stop]
        assert found == max(here, default=0)
        assert frames.is_between == (stop in ends)


@pytest.mark.parametrize("begun", [b"", b"\0\0", frame(b"settings")[:-1]])
def test_before_the_server_s_settings_and_within_a_frame_is_no_place(begun: bytes) -> None:
    frames = FrameEnds()
    frames.follow(begun)

    assert not frames.is_between


def test_the_frame_that_sends_away_is_whole_and_of_the_connection() -> None:
    frames = FrameEnds()

    assert frames.follow(GOAWAY) == len(GOAWAY) == 17
    assert GOAWAY[3] == 7
    assert GOAWAY[5:9] == bytes(4)
