"""Any text is a PKCS#11 URI or is refused, by plugin and installer, and no PIN is told."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_plugin import pkcs11_uri as plugin_uri
from hsm_plugin.errors import HsmPluginError
from istio_hsm_installer import pkcs11_uri as installer_uri
from istio_hsm_installer.errors import InstallerError
from tests.unit.parsers import bounded

_NAMES = (
    *("token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type", "TOKEN", ""),
    *("pin-value", "pin-source", "module-path", "module-name", "x-vendor", "library-version"),
)
_PIN = "s3cretpin"
_VALUES = st.one_of(
    st.sampled_from(("", "mesh", "%00", "%", "%zz", "%FF", "%C3%A9", "private", "cert", "0", "7")),
    st.sampled_from(("9" * 30, "²", "file:/pin", "file:///pin", "file:", "|cat", "a;b", "a&b")),
    st.text(max_size=8).map(lambda text: quote(text, safe="")),
    st.text(max_size=8),
)
_PARTS = st.lists(
    st.tuples(st.sampled_from(_NAMES), st.sampled_from(("=", "", "==", "%3D")), _VALUES), max_size=5
).map(lambda parts: ["".join(part) for part in parts])
_SCHEMES = st.sampled_from(("pkcs11:", "PKCS11:", "pkcs11", "pkcs11://", "pkcs11:;"))
_URIS = st.builds(
    lambda scheme, path, query: scheme + ";".join(path) + ("?" if query else "") + "&".join(query),
    _SCHEMES,
    _PARTS,
    _PARTS,
)
_SOUND = "pkcs11:token=mesh;id=root?module-path=/lib.so&pin-source=file:/pin"


@given(_URIS)
def test_a_uri_that_the_plugin_takes_is_written_as_it_was_read(text: str) -> None:
    try:
        uri = plugin_uri.parse(text)
    except HsmPluginError as error:
        bounded(error)
        return
    assert plugin_uri.parse(str(uri)) == uri


@given(_URIS)
def test_a_uri_that_the_installer_takes_names_what_can_be_opened(text: str) -> None:
    try:
        uri = installer_uri.parse(text)
    except InstallerError as error:
        bounded(error)
        return
    for part in (uri.module, uri.token, uri.key_id, uri.pin_file):
        assert part
        assert part.isprintable()
    assert not uri.pin_file.startswith("|")


_SEPARATORS = st.sampled_from((";", "&", "?"))


@given(st.integers(0, len(_SOUND)), _SEPARATORS, _SEPARATORS | st.just("="))
def test_a_pin_that_stands_anywhere_in_a_uri_is_told_by_no_refusal(
    at: int, before: str, after: str
) -> None:
    told = []
    for pin in (f"pin-value={_PIN}", f"pin-value{_PIN}", _PIN):
        text = _SOUND[:at] + before + pin + (after if "pin-value=" in pin else ";") + _SOUND[at:]
        for parse in (plugin_uri.parse, installer_uri.parse):
            try:
                parse(text)
            except (HsmPluginError, InstallerError) as error:
                told.append(f"{error}{error.hint}")
    assert told
    assert [text for text in told if _PIN in text] == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (_SOUND.replace("pin-source=file:/pin", "pin-source=|cat"), "no program is run"),
        (_SOUND.replace("file:/pin", "file:"), "names no file"),
        (_SOUND.replace("file:/pin", "/p%00"), "unprintable"),
        (_SOUND.replace("id=root", "id=%zz"), "must be written as %XX"),
        (_SOUND.replace("id=root", "id=%ff"), "not UTF-8"),
        (_SOUND + "&id=other", "id is not understood at this place"),
        (_SOUND.replace("token=mesh", "token=mesh;token=mesh"), "token stands wrongly"),
        (_SOUND.replace("token=mesh", "module-path=/x"), "module-path is not understood"),
    ],
)
def test_what_the_installer_cannot_mean_is_refused(text: str, cause: str) -> None:
    with pytest.raises(InstallerError, match=cause):
        installer_uri.parse(text)


def test_the_scheme_has_no_case() -> None:
    assert installer_uri.parse(_SOUND.replace("pkcs11", "PKCS11")) == installer_uri.parse(_SOUND)


def test_the_sound_uris_are_taken() -> None:
    assert installer_uri.parse(_SOUND).token == "mesh"
    assert plugin_uri.parse("pkcs11:token=mesh;id=%01").token == "mesh"
