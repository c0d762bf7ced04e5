"""What the images are made from, without building any."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

IMAGES = Path("images")
NAMES = sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile"))
_SOURCES = {"istio_hsm_proto": Path("proto/istio_hsm_proto")}
# google.protobuf is in a namespace package that metadata does not name.
_DISTRIBUTIONS = {"google": "protobuf", "grpc_health": "grpcio-health-checking"}


def recipe(name: str) -> dict[str, list[str]]:
    table: dict[str, list[str]] = tomllib.loads((IMAGES / name / "image.toml").read_text())
    return table


def imported_modules(package: str) -> set[str]:
    modules: set[str] = set()
    for path in _SOURCES.get(package, Path(package)).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    return modules


def imported_distributions(packages: list[str]) -> set[str]:
    known = importlib.metadata.packages_distributions()
    modules = set[str]().union(*(imported_modules(package) for package in packages))
    third_party = modules - set(sys.stdlib_module_names) - set(packages)
    return {
        re.sub(r"[-_.]+", "-", _DISTRIBUTIONS.get(module) or known.get(module, [module])[0]).lower()
        for module in third_party
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_image_requires_exactly_what_its_packages_import(name: str) -> None:
    wanted = recipe(name)

    assert set(wanted["requires"]) == imported_distributions(wanted["packages"])


def test_every_entry_point_is_in_an_image() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]

    assert {command for name in NAMES for command in recipe(name)["commands"]} == set(
        project["scripts"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_takes_its_base_by_argument_and_runs_as_the_mesh_user(name: str) -> None:
    lines = (IMAGES / name / "Dockerfile").read_text().splitlines()
    final = lines[lines.index("FROM base") :]

    assert "ARG BASE=python:3.11-slim-bookworm" in lines
    assert "USER 1337:1337" in final
    assert not [line for line in final if line.startswith(("RUN", "ADD"))]
    assert any(line.startswith("HEALTHCHECK") for line in final) == (name != "istio-hsm")


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_starts_its_program_without_a_shell(name: str) -> None:
    text = (IMAGES / name / "Dockerfile").read_text()
    started = re.findall(r"^(?:ENTRYPOINT|CMD|RUN|HEALTHCHECK .* CMD) (.)", text, re.MULTILINE)

    assert started
    assert set(started) == {"["}
