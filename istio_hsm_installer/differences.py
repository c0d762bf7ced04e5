"""How two documents differ, in the lines of a unified diff. Pure."""

import difflib
from collections.abc import Mapping

from istio_hsm_installer.documents import to_yaml


def lines_of(before: str, after: str) -> tuple[str, ...]:
    """Return the diff of two texts; nothing when they are equal."""
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    return tuple(changed)[2:]


def between(before: Mapping[str, object] | None, after: Mapping[str, object]) -> tuple[str, ...]:
    """Return the diff of two documents."""
    return lines_of("" if before is None else to_yaml(dict(before)), to_yaml(dict(after)))


def over_wanted(
    before: Mapping[str, object] | None, wanted: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the diff over the wanted keys only: what a server adds by itself does not matter."""
    known = None if before is None else {key: before.get(key) for key in wanted}
    return between(known, wanted)
