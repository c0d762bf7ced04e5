"""Who may know whom, read from the syntax tree of everything that ships."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
CONTRACTS = "istio_hsm_proto"
PACKAGES = ("hsm_plugin", "vault_client", "istiod_ca_bridge", "istio_hsm_installer")
SHIPPED = (*PACKAGES, CONTRACTS)

DOMAIN = {
    "hsm_plugin": {
        *("errors", "keys", "envelope", "trust", "callers", "pkcs11_uri", "token_reference"),
        *("key_reference", "cbc_envelope", "kek_blobs", "dek_document", "gcm_iv"),
        *("certificate_name", "name_constraints", "dek_stock"),
        *("audit_chain", "audit_signatures", "audit_verification", "diagnosis"),
    },
    "vault_client": {"errors", "answers", "delivery", "kv", "lease", "policy", "secret"},
    "istiod_ca_bridge": {
        *(
            "errors",
            "identity",
            "policy",
            "issue",
            "signer",
            "csr",
            "der",
            "chain",
            "records",
            "store",
            "schedule",
            "batch_size",
            "weak_keys",
            "issuance_chain",
            "crl",
            "crl_bundle",
            "remote_kubeconfig",
            "name_constraints",
            "conditions",
            "renewal",
            "rotation",
            "election",
            "status_record",
            "replica_report",
        ),
        *("mode", "observed", "signing_request", "frame_ends"),
        *("worker_messages", "worker_figures"),
    },
    "istio_hsm_installer": {
        *("errors", "durations", "documents", "objects", "differences"),
        *("verification", "custody", "status", "canaries", "dump", "drill", "gateway"),
        *("pkcs11_uri", "token_key", "ceremony", "root_crl", "certificates"),
    },
}
"""Modules that do no I/O and read no clock, file or environment; what they need is passed in."""

EDGES = {
    *("cli", "client", "key_commands", "server", "service", "daemon", "agent"),
    *("csr_signer", "grpc_servers", "mode_wiring", "root_publisher", "worker_pool"),
    "cluster_commands",
    *("edge", "servicers", "kubernetes_servicers", "audit_command"),
    *("doctor_command", "bench_command", "examinations"),
}
"""Modules that only `__main__` and other edges may import; so are all that end in _service."""

CONTRACT_USERS = {
    "hsm_plugin": {
        *("service", "signing_service", "control_service", "rotation_service"),
        *("server", "client", "servicers", "kubernetes_servicers"),
        *("rpcs", "key_use", "inspection_service", "bench_command"),
    },
    "vault_client": {"control_call"},
    "istiod_ca_bridge": {"hsm_key", "ca_service", "grpc_servers", "csr_signer", "root_publisher"},
    "istio_hsm_installer": {"issuance_probe"},
}
"""Modules that speak protobuf."""

DRIVERS = {
    "pkcs11": set(),  # a test's driver only: docs/adr/0004
    "hvac": {"vault_client.vault", "istio_hsm_installer.vault"},
    "kubernetes": {f"{package}.kube" for package in PACKAGES},
    "prometheus_client": {f"{package}.metrics" for package in PACKAGES},
}
"""The one module of a package that may import the driver; parts of it are named `<module>_…`."""

_FOR_TESTS = {"tests", "demo", "bench", "chaos", "pytest", "hypothesis", "unittest"}
_IO_MODULES = {
    *("aiohttp", "asyncio", "concurrent", "ctypes", "fcntl", "glob", "grpc", "http", "httpx"),
    *("hvac", "io", "kubernetes", "logging", "mmap", "multiprocessing", "pathlib", "pkcs11"),
    *("random", "requests", "resource", "select", "selectors", "shutil", "signal", "socket"),
    *("sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile", "threading", "time", "urllib3"),
}
_RANDOMNESS = {"urandom"}
"""What a domain module may take from os: keys and IVs need it, and it is no state."""
_IO_CALLS = {"open", "print", "input"}
_CLOCKS = {"now", "utcnow", "today"}
_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file that ships."""

    package: str
    name: str
    """Dotted, with its package."""
    tree: ast.Module

    @property
    def stem(self) -> str:
        """Its name inside the package."""
        return self.name.removeprefix(f"{self.package}.")

    def imports(self) -> Iterator[str]:
        """Yield what is imported, wherever in the file: `a`, and `b.c` of `from b import c`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: imports are absolute"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def imports_of(self, package: str) -> set[str]:
        """Return the imports below a top-level name."""
        return {name for name in self.imports() if name.partition(".")[0] == package}

    def attributes_of(self, name: str) -> set[str]:
        """Return x of each `name.x`, and of each `from name import x`."""
        used = {
            node.attr
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == name
        }
        return used | {found.split(".")[1] for found in self.imports_of(name) if "." in found}


def module(source: str, name: str = "hsm_plugin.envelope") -> Module:
    """Return a module of a source text."""
    return Module(name.partition(".")[0], name, ast.parse(source))


@cache
def modules() -> tuple[Module, ...]:
    """Return all that ships, as it is on the disk now."""
    found = []
    for package in SHIPPED:
        base = _ROOT / "proto" if package == CONTRACTS else _ROOT
        for path in sorted((base / package).rglob("*.py")):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            found.append(Module(package, ".".join(parts), ast.parse(path.read_text())))
    return tuple(found)


def is_part_of(name: str, allowed: set[str]) -> bool:
    """Tell whether a module is one of those named, or `<one of them>_…`."""
    return any(name == entry or name.startswith(f"{entry}_") for entry in allowed)


# -- the rules, each as the faults of one module -------------------------------------------


def foreign_imports(it: Module) -> set[str]:
    """Packages never import each other, and the contracts import nothing of ours."""
    return {name for other in PACKAGES if other != it.package for name in it.imports_of(other)}


def contract_imports(it: Module) -> set[str]:
    """Only the modules that speak protobuf import the contracts."""
    if it.package == CONTRACTS or it.stem in CONTRACT_USERS.get(it.package, set()):
        return set()
    return it.imports_of(CONTRACTS)


def stray_drivers(it: Module) -> set[str]:
    """Each third-party driver sits behind one module."""
    return {
        name
        for driver, owners in DRIVERS.items()
        if not is_part_of(it.name, owners)
        for name in it.imports_of(driver)
    }


def outward_imports(it: Module) -> set[str]:
    """The domain knows the domain only; nothing but `__main__` and edges knows an edge."""
    own = {name.split(".")[1] for name in it.imports_of(it.package) if "." in name}
    if it.stem in DOMAIN.get(it.package, set()):
        return own - DOMAIN[it.package]
    if it.stem == "__main__" or is_edge(it.stem):
        return own & {"__main__"}
    return {name for name in own if is_edge(name)}


def is_edge(stem: str) -> bool:
    """Tell whether a module is an edge. `key_service` is the name of a Protocol."""
    return stem in EDGES or (stem.endswith("_service") and stem != "key_service")


def effects(it: Module) -> set[str]:
    """Domain code does no I/O and reads no clock, file or environment."""
    if it.stem not in DOMAIN.get(it.package, set()):
        return set()
    found = {name for name in it.imports() if name.split(".")[0] in _IO_MODULES}
    found |= {f"os.{name}" for name in it.attributes_of("os") - _RANDOMNESS}
    found |= {name for name in it.imports_of("urllib") if not name.startswith("urllib.parse")}
    for node in ast.walk(it.tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) if name in _IO_CALLS:
                    found.add(name)
                case ast.Attribute(attr=name) if name in _CLOCKS:
                    found.add(name)
    return found


def environment_reads(it: Module) -> set[str]:
    """The environment is read in config.py only."""
    if it.stem == "config":
        return set()
    return {f"os.{name}" for name in it.attributes_of("os") & _ENVIRONMENT}


def test_only_imports(it: Module) -> set[str]:
    """Nothing that ships needs what exists only for tests, demo or bench."""
    return {name for name in it.imports() if name.split(".")[0] in _FOR_TESTS}


test_only_imports.__test__ = False  # type: ignore[attr-defined] # a rule, not a test

RULES = (
    foreign_imports,
    contract_imports,
    stray_drivers,
    outward_imports,
    effects,
    environment_reads,
    test_only_imports,
)


@pytest.mark.parametrize("package", SHIPPED)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_a_rule(rule: object, package: str) -> None:
    assert callable(rule)
    faults = {it.name: rule(it) for it in modules() if it.package == package}
    assert {name: found for name, found in faults.items() if found} == {}, rule.__doc__


def test_no_package_has_a_module_for_everything_else() -> None:
    vague = {"common", "util", "utils", "helpers", "misc", "shared"}
    assert [it.name for it in modules() if vague & set(it.name.split("."))] == []


def test_no_module_is_in_an_import_cycle() -> None:
    known = {it.name for it in modules()}
    edges = {
        it.name: {
            target
            for name in it.imports()
            for target in (name, name.rpartition(".")[0])
            if target in known and target != it.name and target not in SHIPPED
        }
        for it in modules()
    }
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        for name in leaves:
            del edges[name]
    assert sorted(edges) == []


def test_every_package_is_there_and_is_read() -> None:
    assert {it.package for it in modules()} == set(SHIPPED)
    present = {it.stem for it in modules() if it.package == "hsm_plugin"}
    assert DOMAIN["hsm_plugin"] | {"pkcs11_store", "service", "__main__"} <= present


# -- each rule sees the fault that it is there for -----------------------------------------


@pytest.mark.parametrize(
    ("rule", "source", "name"),
    [
        (foreign_imports, "import vault_client.secret", "hsm_plugin.server"),
        (foreign_imports, "def f():\n    from hsm_plugin import keys", "istiod_ca_bridge.hsm_key"),
        (foreign_imports, "from hsm_plugin.keys import KeyRef", "istio_hsm_proto.extra"),
        (contract_imports, "from istio_hsm_proto import signing_v1_pb2", "hsm_plugin.keys"),
        (contract_imports, "import istio_hsm_proto.istio_ca_pb2", "vault_client.agent"),
        (stray_drivers, "import pkcs11", "hsm_plugin.service"),
        (stray_drivers, "from pkcs11.util import ec", "hsm_plugin.pkcs11_store"),
        (stray_drivers, "import hvac", "vault_client.session"),
        (stray_drivers, "from kubernetes import client", "istiod_ca_bridge.store"),
        (outward_imports, "from hsm_plugin.pkcs11_store import Pkcs11Store", "hsm_plugin.trust"),
        (outward_imports, "from hsm_plugin import server", "hsm_plugin.connection"),
        (outward_imports, "from hsm_plugin.__main__ import main", "hsm_plugin.cli"),
        (effects, "import time", "hsm_plugin.envelope"),
        (effects, "import os\nos.stat('x')", "hsm_plugin.envelope"),
        (effects, "from os import environ", "hsm_plugin.envelope"),
        (effects, "open('x')", "hsm_plugin.trust"),
        (effects, "from datetime import datetime\ndatetime.now()", "vault_client.lease"),
        (effects, "from pathlib import Path", "istiod_ca_bridge.policy"),
        (environment_reads, "import os\nos.environ['PIN']", "hsm_plugin.server"),
        (environment_reads, "from os import getenv", "vault_client.vault"),
        (test_only_imports, "from tests.support import pki", "hsm_plugin.server"),
    ],
)
def test_a_rule_sees_its_fault(rule: object, source: str, name: str) -> None:
    assert callable(rule)
    assert rule(module(source, name))


@pytest.mark.parametrize(
    ("rule", "source", "name"),
    [
        (foreign_imports, "from hsm_plugin.keys import KeyRef", "hsm_plugin.server"),
        (contract_imports, "from istio_hsm_proto import signing_v1_pb2", "hsm_plugin.service"),
        (stray_drivers, "import hvac", "vault_client.vault"),
        (outward_imports, "from hsm_plugin.errors import HsmPluginError", "hsm_plugin.trust"),
        (outward_imports, "from hsm_plugin import server", "hsm_plugin.cli"),
        (effects, "import os\nos.urandom(12)", "hsm_plugin.envelope"),
        (environment_reads, "import os\nos.environ['SOCKET']", "hsm_plugin.config"),
    ],
)
def test_a_rule_lets_pass_what_is_right(rule: object, source: str, name: str) -> None:
    assert callable(rule)
    assert rule(module(source, name)) == set()
