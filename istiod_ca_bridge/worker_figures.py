"""One exposition of several processes': each family once, each sample with its worker's label."""

from collections.abc import Mapping


def merged(own: str, workers: Mapping[str, str]) -> str:
    """Return the figures of the bridge itself, then the workers', each labelled `worker`.

    A sum would fall when a worker is restarted, and rate() would take that for a reset of all.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for label, text in (("", own), *workers.items()):
        family = ""
        seen = set(heads)
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                if family not in seen:
                    heads.setdefault(family, []).append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, label))
    return "".join(
        f"{line}\n" for family in heads for line in (*heads[family], *samples.get(family, ()))
    )


def _labelled(sample: str, worker: str) -> str:
    """Return `name{…} value` with one label more; a name has neither brace nor space."""
    if not worker:
        return sample
    brace, space = sample.find("{"), sample.find(" ")
    if 0 <= brace < space:
        return f'{sample[: brace + 1]}worker="{worker}",{sample[brace + 1 :]}'
    return f'{sample[:space]}{{worker="{worker}"}}{sample[space:]}'
