"""YAML in and out; the only user of its driver. Pure."""

from collections.abc import Mapping

import yaml

from istio_hsm_installer.errors import InputError

_MAX_BYTES = 64 << 10
"""Of a document: its parser's time grows with the square of the nesting."""

_NO_YAML = (
    *(yaml.YAMLError, ValueError, RecursionError),
    *(KeyError, IndexError, AttributeError, OverflowError),
)
"""What its parser raises; the last four of a tag that its scalar does not fit."""


class _Loader(yaml.SafeLoader):
    """Reads mappings as they stand: merge keys are refused, for nested ones take up all memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem="a merge key (<<) is not taken", problem_mark=key.start_mark
                )
        super().flatten_mapping(node)


def from_yaml(content: bytes, path: str) -> Mapping[str, object]:
    """Return the one mapping of a file's content; InputError, which quotes no line, otherwise."""
    if len(content) > _MAX_BYTES:
        raise InputError(
            f"{path} is larger than {_MAX_BYTES} bytes", hint="check that it is the right file"
        )
    try:
        document: object = _Loader(content).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path} is not YAML{where}: {error.problem}", hint="check quotes and indentation"
        ) from None
    except _NO_YAML:
        raise InputError(f"{path} is not YAML", hint="it must be UTF-8 text") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no mapping", hint="start from: istio-hsm config init")
    return {str(key): value for key, value in document.items()}


def to_yaml(document: object) -> str:
    """Return block YAML with the keys in their order."""
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=10_000)
    return text
