"""The images as built: what is in them, that they are the same twice, and that they run."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.images import cell
from tests.images.builder import EPOCH, PREFIX, TAG, ImageError, Images
from tests.images.conftest import NAMES

# The first test pays for all builds: minutes when nothing is cached.
pytestmark = pytest.mark.timeout(900)

_ENVIRONMENT = {"PATH": "/opt/istio-hsm/bin", "PYTHONSAFEPATH": "1"}


def reference(name: str) -> str:
    return f"{PREFIX}/{name}:{TAG}"


def config_of(images: Images, image: str) -> dict[str, Any]:
    config: dict[str, Any] = images.inspect(image)["Docker"]["config"]
    return config


def layers_of(images: Images, image: str) -> list[str]:
    layers: list[str] = images.inspect(image)["Docker"]["rootfs"]["diff_ids"]
    return layers


def run_in(root: Path, *program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        cell.command(root, [], program),
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_image_says_who_it_is_and_runs_as_the_mesh_user(images: Images, name: str) -> None:
    config = config_of(images, reference(name))
    labels = config["Labels"]

    assert config["User"] == "1337:1337"
    assert config["Entrypoint"] == [f"/opt/istio-hsm/bin/{name}"]
    assert labels["org.opencontainers.image.title"] == name
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.base.name"] == "localhost/base"
    assert len(labels["org.opencontainers.image.revision"]) >= 7


def test_a_server_image_carries_its_health_command(images: Images) -> None:
    health = {
        name: config_of(images, reference(name)).get("Healthcheck", {}).get("Test")
        for name in NAMES
    }

    assert health == {
        "hsm-plugin": ["CMD", "/opt/istio-hsm/bin/hsm-plugin", "health"],
        "vault-client": ["CMD", "/opt/istio-hsm/bin/vault-client", "healthcheck"],
        "istiod-ca-bridge": ["CMD", "/opt/istio-hsm/bin/istiod-ca-bridge", "health"],
        "istio-hsm": None,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_program_starts_on_a_read_only_root_as_the_mesh_user(images: Images, name: str) -> None:
    result = run_in(images.root(reference(name)), f"/opt/istio-hsm/bin/{name}", "--help")

    assert result.returncode == 0, result.stderr
    assert name in result.stdout


def test_the_root_is_read_only_and_no_capability_is_left(images: Images) -> None:
    program = (
        "import os, pathlib\n"
        "print(os.getuid(), os.getgid(), os.getgroups(), os.getpid())\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print([line.split()[1] for line in status.splitlines() if line.startswith('Cap')])\n"
        "pathlib.Path('/opt/x').touch()\n"
    )
    python = "/opt/istio-hsm/bin/python"
    result = run_in(images.root(reference("vault-client")), python, "-c", program)

    assert result.stdout.splitlines() == ["1337 1337 [] 1", str(["0" * 16] * 5)]
    assert result.returncode != 0
    assert "Read-only file system" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_image_holds_one_program_and_no_other(images: Images, name: str) -> None:
    folder = images.root(reference(name)) / "opt/istio-hsm"
    [site] = folder.glob("lib/python3*/site-packages")
    ours = {"hsm_plugin", "vault_client", "istiod_ca_bridge", "istio_hsm_installer"}
    commands = {"hsm-plugin", "k8s-kms-plugin", "vault-client", "istiod-ca-bridge", "istio-hsm"}

    assert len(ours & {path.name for path in site.iterdir()}) == 1
    found = commands & {path.name for path in (folder / "bin").iterdir()}
    assert found == ({name, "k8s-kms-plugin"} if name == "hsm-plugin" else {name})
    assert not list(site.glob("pip*"))


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_of_materials_names_what_is_installed(images: Images, name: str) -> None:
    root = images.root(reference(name))
    bill = json.loads((root / "opt/istio-hsm/sbom.cdx.json").read_text())
    listed = {part["name"] for part in bill["components"] if part["purl"].startswith("pkg:pypi/")}
    [site] = root.glob("opt/istio-hsm/lib/python3*/site-packages")
    installed = {
        path.name.partition("-")[0].lower().replace("_", "-") for path in site.glob("*.dist-info")
    }
    lock = Path("requirements/runtime.lock").read_text()
    pypi = [part for part in bill["components"] if part["purl"].startswith("pkg:pypi/")]

    assert listed == installed - {"istio-hsm"}
    assert all(f"sha256:{part['hashes'][0]['content']}" in lock for part in pypi)
    assert any(part["purl"].startswith("pkg:deb/debian/libc6@") for part in bill["components"])
    assert bill["specVersion"] == "1.6"


def test_two_builds_of_the_same_sources_have_the_same_layers(images: Images) -> None:
    images.build("hsm-plugin", tag="again")

    first, again = (f"{PREFIX}/hsm-plugin:{tag}" for tag in (TAG, "again"))
    assert layers_of(images, again) == layers_of(images, first)


def test_a_build_of_another_time_has_another_layer(images: Images) -> None:
    images.build("hsm-plugin", tag="later", SOURCE_DATE_EPOCH=str(EPOCH + 60))

    first, later = (f"{PREFIX}/hsm-plugin:{tag}" for tag in (TAG, "later"))
    assert layers_of(images, later)[:-1] == layers_of(images, first)[:-1]
    assert layers_of(images, later)[-1] != layers_of(images, first)[-1]


def test_a_wheel_that_is_not_the_locked_one_ends_the_build(images: Images, tmp_path: Path) -> None:
    shutil.copytree(images.wheels, tmp_path, dirs_exist_ok=True)
    [wheel] = tmp_path.glob("hvac-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    with pytest.raises(ImageError, match="DO NOT MATCH THE HASHES"):
        images.build("vault-client", tag="tampered", WHEELHOUSE=str(tmp_path))


@pytest.mark.parametrize("name", ["nothing-of-ours"])
def test_an_unknown_image_is_refused_by_name(name: str) -> None:
    result = subprocess.run(
        ["scripts/build-image.sh", name],
        env=os.environ | {"BUILDER": "buildah"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert result.stderr.startswith(f"error: there is no images/{name}\nhint: ")
