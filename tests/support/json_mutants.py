"""JSON documents made by chance of a sound one: values replaced, removed, repeated or nested."""

import copy
from typing import Any

from hypothesis import strategies as st

_WORDS = (
    *("99999999999", "999999999999999", "🦆", "a\r\nb: c", "h" * 64 + ".test", "!!int"),
    *("", "\0", "\ud800", "²", "é", "\n", "x" * 300, "9" * 40, "-1", "1_0", "٣", "1e999"),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "null", "[[", "%00"),
    *("https://[", "https://h:99999", "https://u@h", "https://a b", "retire-and-destroy", "abort"),
)
_NUMBERS = (0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**40, 10**4299, 0.5, -0.0)
leaves: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from(_NUMBERS)
    | st.sampled_from(_WORDS)
    | st.text(max_size=12)
)
"""Values that some reader may choke on."""

values: st.SearchStrategy[Any] = (
    leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=4), leaves, max_size=2)
)


@st.composite
def mutants(draw: st.DrawFn, sound: Any) -> Any:
    """Return the document with up to three places changed; sometimes with none."""
    document = copy.deepcopy(sound)
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 4)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 2:
                holder[key] = [holder[key]]
            case 3 if isinstance(holder[key], str):
                holder[key] = draw(_edited(holder[key]))
            case _:
                holder[key] = draw(values)
    return document


@st.composite
def _edited(draw: st.DrawFn, text: str) -> str:
    """Return the text with one place overwritten."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 8)))
    return text[:start] + draw(st.sampled_from(_WORDS) | st.text(max_size=3)) + text[end:]


def _places(value: Any) -> Any:
    """Yield each container within, with each key or index of it."""
    entries = value.items() if isinstance(value, dict) else ()
    for key, inner in entries if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
