from pathlib import Path
from typing import Any

import pytest

from istio_hsm_installer.errors import InputError
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kv_secret import KvSecret
from istio_hsm_installer.steps.policy import Policy
from istio_hsm_installer.wiring import Target, make_world
from tests.support.hsm_credentials import make_credentials
from tests.unit.istio_hsm_installer.sample import options

FILES = {"clientcert": "c.pem", "clientkey": "k.pem", "servercert": "s.pem"}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, str]:
    """One set of credentials, in files too."""
    made = make_credentials(mark="canary")
    for key, name in FILES.items():
        (tmp_path / name).write_text(made[key])
    (tmp_path / "pin").write_text(made["PIN"] + "\n")
    return made


@pytest.fixture
def made(tmp_path: Path) -> Options:
    return options(
        hsm={
            "clientCertFile": str(tmp_path / "c.pem"),
            "clientKeyFile": str(tmp_path / "k.pem"),
            "serverCertFile": str(tmp_path / "s.pem"),
            "pinFile": str(tmp_path / "pin"),
        }
    )


def check(made: Options) -> None:
    KvSecret(made).check(make_world(made, Target(), None))


@pytest.mark.usefixtures("values")
def test_sound_files_pass(made: Options) -> None:
    check(made)


def test_a_pem_that_echo_has_flattened_is_told(
    values: dict[str, str], made: Options, tmp_path: Path
) -> None:
    (tmp_path / "c.pem").write_text(values["clientcert"].replace("\n", " "))
    with pytest.raises(InputError) as caught:
        check(made)
    assert "line breaks" in caught.value.hint


@pytest.mark.usefixtures("values")
def test_a_key_of_another_certificate_is_refused_unquoted(made: Options, tmp_path: Path) -> None:
    key = make_credentials()["clientkey"]
    (tmp_path / "k.pem").write_text(key)
    with pytest.raises(InputError, match="is not the key of") as caught:
        check(made)
    assert key.splitlines()[1] not in str(caught.value)


@pytest.mark.usefixtures("values")
@pytest.mark.parametrize("content", ["", "12 \n34\n", "é"])
def test_a_pin_file_of_other_than_one_line_of_ascii_is_refused(
    made: Options, tmp_path: Path, content: str
) -> None:
    (tmp_path / "pin").write_text(content)
    with pytest.raises(InputError, match="one line of ASCII"):
        check(made)


@pytest.mark.usefixtures("values")
def test_a_secret_has_no_repr(made: Options) -> None:
    assert "canary" not in repr(KvSecret(made)._files())


@pytest.mark.parametrize(
    ("vault", "path"),
    [
        ({}, "asm-c1/hsm"),
        ({"kvVersion": 2}, "asm-c1/data/hsm"),
        ({"kvVersion": 2, "hsmSecretPath": "asm-c1/a/b"}, "asm-c1/data/a/b"),
    ],
)
def test_the_policy_reads_the_one_path_of_the_kv_version(vault: dict[str, Any], path: str) -> None:
    assert Policy(options(vault=vault)).text == f'path "{path}" {{\n  capabilities = ["read"]\n}}\n'
