"""The bill of materials of an image, as CycloneDX 1.6 JSON: pure, and the same for the same input.

Python distributions come from pip's installation report, operating system packages from the base's
dpkg status.
"""

import platform
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

Component = dict[str, Any]
"""As JSON has it (CycloneDX 1.6, `component`)."""

_OURS = "istio-hsm"
_NAMESPACE = uuid.UUID("2b1f6a0e-8f5d-5d3c-9d0b-4a7e1c6f2d10")


def document(
    name: str,
    report: Mapping[str, Any],
    wheels: Mapping[str, str],
    dpkg_status: str,
    epoch: int,
) -> dict[str, Any]:
    """Return the document for the image `name`; `wheels` has the SHA-256 of each by its name."""
    python = sorted(_distributions(report, wheels), key=lambda component: str(component["name"]))
    ours = next(component for component in python if component["name"] == _OURS)
    others = [component for component in python if component is not ours]
    components = [_interpreter(), *others, *_debian_packages(dpkg_status)]
    subject = {
        "type": "container",
        "bom-ref": name,
        "name": name,
        "version": ours["version"],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    serial = uuid.uuid5(_NAMESPACE, repr((subject, components, epoch)))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "component": subject,
        },
        "components": components,
        "dependencies": [
            {"ref": name, "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }


def _distributions(report: Mapping[str, Any], wheels: Mapping[str, str]) -> Iterator[Component]:
    for item in report["install"]:
        metadata = item["metadata"]
        name, version = metadata["name"].lower().replace("_", "-"), metadata["version"]
        purl = f"pkg:pypi/{name}@{version}"
        wheel = unquote(item["download_info"]["url"]).rpartition("/")[2]
        yield {
            "type": "application" if name == _OURS else "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "hashes": [{"alg": "SHA-256", "content": wheels[wheel]}],
        }


def _interpreter() -> Component:
    version = platform.python_version()
    purl = f"pkg:generic/python@{version}"
    return {"type": "platform", "bom-ref": purl, "name": "python", "version": version, "purl": purl}


def _debian_packages(status: str) -> Iterator[Component]:
    """Yield what dpkg says is installed (deb-control(5): paragraphs of `Field: value`)."""
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and not line[0].isspace()
        )
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={arch}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
        }
