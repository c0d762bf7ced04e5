"""Every parser meets every entry of the corpus, and reads it or refuses with its own error."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import corpus
from tests.unit.parsers import Parser
from tests.unit.state_parsers import PARSERS

_MAX_TOLD = 4000
"""Characters of a refusal: what is told goes to a log, and what is quoted is bounded."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A file of each entry."""
    folder = tmp_path_factory.mktemp("corpus")
    found = {}
    for number, (name, data) in enumerate(corpus.entries().items()):
        found[name] = folder / str(number)
        found[name].write_bytes(data)
    return found


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_every_nasty_input_is_read_or_refused(parser: Parser, files: Mapping[str, Path]) -> None:
    faults = []
    for name, data in corpus.entries().items():
        try:
            parser.parse(data, files[name])
        except parser.refusals as error:
            told = f"{error}{getattr(error, 'hint', '')}"
            if len(told) > _MAX_TOLD and not parser.is_own:
                faults.append(f"{name}: its refusal has {len(told)} characters")
        except Exception as error:  # noqa: BLE001 - each is a fault, and all are told
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
    assert faults == []


def test_the_corpus_holds_what_it_is_for() -> None:
    names = " ".join(corpus.entries())
    for kind in ("truncated", "4-GiB", "nested", "duplicated", "base64", "nul", "no-utf8", "zip"):
        assert kind in names
    assert all(len(path.read_bytes()) <= 1 << 16 for path in corpus.FOLDER.iterdir())


def test_the_sound_entries_are_read(
    files: Mapping[str, Path],
) -> None:
    sound = {
        "plugin_jwe": "jwe-sound.jwe",
        "plugin_dek": "jwk-sound.json",
        "plugin_root": "certificate-sound.pem",
        "bridge_csr": "request-sound.pem",
        "installer_configuration": "yaml-sound.yaml",
        "installer_request": "request-sound.pem",
    }
    for parser in PARSERS:
        if name := sound.get(parser.name):
            assert parser.parse(corpus.entries()[name], files[name]) is not None
