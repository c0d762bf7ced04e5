"""What a program tells Prometheus, as its /metrics says it."""

import re
import urllib.request

_SAMPLE = re.compile(r"^(\w+)(\{.*\})? (\S+)$", re.MULTILINE)


def figures(address: str) -> dict[str, float]:
    """Return each figure by its name and labels, as they are written."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {f"{name}{labels}": float(value) for name, labels, value in _SAMPLE.findall(text)}
