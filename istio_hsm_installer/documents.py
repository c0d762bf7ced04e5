"""YAML in and out; the only user of its driver. Pure."""

from collections.abc import Mapping

import yaml

from istio_hsm_installer.errors import InputError

_MAX_BYTES = 64 << 10
"""Of a document: its parser's time grows with the square of the nesting."""


def from_yaml(content: bytes, path: str) -> Mapping[str, object]:
    """Return the one mapping of a file's content; InputError, which quotes no line, otherwise."""
    if len(content) > _MAX_BYTES:
        raise InputError(
            f"{path} is larger than {_MAX_BYTES} bytes", hint="check that it is the right file"
        )
    try:
        document = yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path} is not YAML{where}: {error.problem}", hint="check quotes and indentation"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{path} is not YAML", hint="it must be UTF-8 text") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no mapping", hint="start from: istio-hsm config init")
    return {str(key): value for key, value in document.items()}


def to_yaml(document: object) -> str:
    """Return block YAML with the keys in their order."""
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=10_000)
    return text
