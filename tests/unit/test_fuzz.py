"""What chance makes of sound and nasty inputs is read, or refused with the parser's own error.

`HYPOTHESIS_PROFILE=long` tries many more.
"""

import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from istio_hsm_installer import schema
from istio_hsm_installer.errors import InstallerError
from istiod_ca_bridge import config as bridge_config
from istiod_ca_bridge.errors import BridgeError
from tests.support import corpus
from tests.unit.parsers import BRIDGE_VARIABLES, VAULT_VARIABLES, Parser
from tests.unit.state_parsers import PARSERS
from vault_client import config as vault_config
from vault_client.errors import VaultClientError

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")
_SEEDS = [data for data in corpus.entries().values() if len(data) <= 2048]
_SOUND = yaml.safe_load(corpus.entries()["yaml-sound.yaml"])

_PIECES = (
    *(b"\0", b"\xff" * 4, b"\x30\x80", b"\x02\x01\xff", b".", b"{", b"[[", b'"', b"\\ud800"),
    *(b"9" * 40, b"-----BEGIN ", b"\r\n", b"NaN", b"null", b"1e999", b": ", b"- ", b"&a ", b"*a"),
)
_bytes = st.binary(max_size=12) | st.sampled_from(_PIECES)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Return a corpus entry with a few places cut out, overwritten, repeated or crossed."""
    data = draw(st.sampled_from(_SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        new = draw(_bytes) if draw(st.booleans()) else data[start:end] * draw(st.integers(0, 3))
        data = data[:start] + new + data[end:]
    if draw(st.integers(0, 7)) == 0:
        data += draw(st.sampled_from(_SEEDS))
    return data


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
@given(data=mutants())
def test_a_mutant_is_read_or_refused(parser: Parser, data: bytes) -> None:
    path = Path(_FOLDER.name) / "input"
    path.write_bytes(data)
    try:
        parser.parse(data, path)
    except parser.refusals:
        return


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_WORDS = (
    *("true", "false", "1", "0", "-1", "²", "9" * 60, "1h", "0s", "99999999h", "24h", "h"),
    *("127.0.0.1:1", "[::1]:443", ":", ",", "a,b", "a=b", "a=b,a=c", "/", ".", "..", "unix:///s"),
    *("off", "https://v:8200", "http://v", "https://[", "kubernetes", "directory", "json", "m/p"),
    *("resident", "rsa-2048", "sealed", "token", "approle", "grace=1s", "wipe", "0440"),
)
_settings = _texts | st.sampled_from(_WORDS)


@given(st.dictionaries(st.sampled_from(BRIDGE_VARIABLES), _settings))
def test_any_environment_of_the_bridge_is_read_or_refused(environment: dict[str, str]) -> None:
    try:
        bridge_config.read_config(environment)
    except BridgeError:
        return


@given(st.dictionaries(st.sampled_from(VAULT_VARIABLES), _settings))
def test_any_environment_of_the_vault_client_is_read_or_refused(
    environment: dict[str, str],
) -> None:
    vault_config.load_logging(environment)
    try:
        vault_config.load(environment)
    except VaultClientError:
        return


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary() | _settings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_settings, inner, max_size=3),
    max_leaves=5,
)
_PLACES = [
    (section, schema.yaml_name(entry.name))
    for section, kind in schema.SECTIONS.items()
    for entry in fields(kind)
]


@given(st.dictionaries(st.sampled_from(_PLACES), _values, max_size=4), st.booleans())
def test_any_configuration_of_the_installer_is_read_or_refused(
    changes: dict[tuple[str, str], object],
    is_whole: bool,  # noqa: FBT001 - drawn
) -> None:
    document: dict[str, object] = dict(_SOUND)
    for (section, name), value in changes.items():
        settings = document.get(section)
        whole = settings if isinstance(settings, dict) else {}
        document[section] = whole | {name: value} if is_whole else value
    try:
        schema.parse(document, Path("/site"))
    except InstallerError:
        return
