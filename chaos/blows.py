"""How each fault is done to the system, and undone."""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from chaos.clock import SkewedClock
from chaos.faults import Fault
from chaos.schedule import Blow
from chaos.site import CHAIN_SECRET, NAMESPACE, ROOT_KEY, ROOT_MAP, WORKLOADS, Site
from chaos.supervisor import Supervised
from chaos.waiting import wait_until
from tests.integration.istiod_ca_bridge import harness
from tests.support import pki
from tests.support.faults import ON_THE_TOKEN, Ckr, FaultyHsm

_SKEW_SECONDS = 100
"""Within the two minutes that certificates are dated back."""
_BALLAST = "ballast"
_BLOCK = bytes(1 << 16)

Deed = Callable[[Site, Blow], None]


@dataclass(frozen=True, slots=True)
class Doing:
    """A fault's begin and end."""

    begin: Deed
    end: Deed


def _nothing(_site: Site, _blow: Blow) -> None:
    """Nobody ends it: the system mends it."""


def _bridge(site: Site, blow: Blow) -> Supervised:
    return site.bridges[blow.replica % len(site.bridges)]


def _leader(site: Site, _blow: Blow) -> Supervised:
    wait_until(lambda: site.leader() is not None, lambda: "a leader")
    return site.bridges[site.leader() or 0]


def _sends(number: signal.Signals, to: Callable[[Site, Blow], Supervised]) -> Deed:
    return lambda site, blow: to(site, blow).send(number)


def _frozen(to: Callable[[Site, Blow], Supervised]) -> Doing:
    return Doing(_sends(signal.SIGSTOP, to), _sends(signal.SIGCONT, to))


def _kill_bridges(site: Site, _blow: Blow) -> None:
    for bridge in site.bridges:
        bridge.send(signal.SIGKILL)


def _kill_worker(site: Site, _blow: Blow) -> None:
    for pid in site.plugin.worker_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _module(begin: Callable[[FaultyHsm], None]) -> Doing:
    return Doing(lambda site, _: begin(site.hsm), lambda site, _: site.hsm.heal())


def _unseal(site: Site, _blow: Blow) -> None:
    site.bao.unseal()


def _start_vault(site: Site, _blow: Blow) -> None:
    site.bao.start()


def _write_chain(site: Site, _blow: Blow) -> None:
    site.write_chain(site.chain)


def _delete_secret(name: str) -> Deed:
    def delete(site: Site, _blow: Blow) -> None:
        site.core.delete_namespaced_secret(name, NAMESPACE)

    return delete


def _foreign_chain(site: Site, _blow: Blow) -> None:
    root = pki.root("Another Root")
    site.write_chain(pki.intermediate(root).pem + root.pem)


def _spoilt_chain(site: Site, _blow: Blow) -> None:
    middle = len(site.chain) // 3
    site.write_chain(site.chain[:middle] + b"spoilt by hand" + site.chain[middle:])


def _delete_root(site: Site, blow: Blow) -> None:
    site.core.delete_namespaced_config_map(ROOT_MAP, WORKLOADS[blow.replica % len(WORKLOADS)])


def _change_root(site: Site, blow: Blow) -> None:
    site.core.patch_namespaced_config_map(
        ROOT_MAP,
        WORKLOADS[blow.replica % len(WORKLOADS)],
        {"data": {ROOT_KEY: harness.strict_root().pem.decode()}},
    )


def _fill(site: Site, _blow: Blow) -> None:
    with contextlib.suppress(OSError), (site.ledgers / _BALLAST).open("ab", buffering=0) as file:
        while True:
            file.write(_BLOCK)


def _empty(site: Site, _blow: Blow) -> None:
    (site.ledgers / _BALLAST).unlink(missing_ok=True)


def _clock(of: Callable[[Site, Blow], Supervised], seconds: int) -> Doing:
    def clock(site: Site, blow: Blow) -> SkewedClock:
        return site.clocks[of(site, blow).name]

    return Doing(
        lambda site, blow: clock(site, blow).set_ahead(seconds),
        lambda site, blow: clock(site, blow).set_ahead(0),
    )


def _plugin(site: Site, _blow: Blow) -> Supervised:
    return site.plugin


def _delivery(site: Site, _blow: Blow) -> Supervised:
    return site.delivery


DOINGS = {
    Fault.BRIDGE_KILLED: Doing(_sends(signal.SIGKILL, _bridge), _nothing),
    Fault.LEADER_KILLED: Doing(_sends(signal.SIGKILL, _leader), _nothing),
    Fault.BRIDGES_KILLED: Doing(_kill_bridges, _nothing),
    Fault.BRIDGE_FROZEN: _frozen(_bridge),
    Fault.BRIDGE_STOPPED: Doing(_sends(signal.SIGTERM, _bridge), _nothing),
    Fault.PLUGIN_KILLED: Doing(_sends(signal.SIGKILL, _plugin), _nothing),
    Fault.PLUGIN_FROZEN: _frozen(_plugin),
    Fault.WORKER_KILLED: Doing(_kill_worker, _nothing),
    Fault.MODULE_HANGS: _module(lambda hsm: hsm.hang("C_Sign")),
    Fault.MODULE_CRASHES: Doing(lambda site, _: site.hsm.crash("C_Sign"), _nothing),
    Fault.DEVICE_ERROR: _module(lambda hsm: hsm.refuse(Ckr.DEVICE_ERROR, *ON_THE_TOKEN)),
    Fault.TOKEN_AWAY: _module(lambda hsm: hsm.refuse(Ckr.TOKEN_NOT_PRESENT, *ON_THE_TOKEN)),
    Fault.SESSIONS_LOST: Doing(lambda site, _: site.hsm.lose_sessions(), _nothing),
    Fault.MODULE_FINALISED: Doing(lambda site, _: site.hsm.uninitialise(), _nothing),
    Fault.MODULE_SLOW: Doing(
        lambda site, _: site.hsm.delay(5000), lambda site, _: site.hsm.delay(0)
    ),
    Fault.VAULT_KILLED: Doing(lambda site, _: site.bao.kill(), _start_vault),
    Fault.VAULT_SEALED: Doing(lambda site, _: site.bao.seal(), _unseal),
    Fault.DELIVERY_KILLED: Doing(_sends(signal.SIGKILL, _delivery), _nothing),
    Fault.API_FROZEN: Doing(lambda site, _: site.kube.pause(), lambda site, _: site.kube.resume()),
    Fault.API_KILLED: Doing(
        lambda site, _: site.kube.stop_apiserver(), lambda site, _: site.kube.start_apiserver()
    ),
    Fault.CHAIN_DELETED: Doing(_delete_secret(CHAIN_SECRET), _write_chain),
    Fault.CHAIN_SPOILT: Doing(_spoilt_chain, _write_chain),
    Fault.CHAIN_FOREIGN: Doing(_foreign_chain, _write_chain),
    Fault.ROOT_DELETED: Doing(_delete_root, _nothing),
    Fault.ROOT_CHANGED: Doing(_change_root, _nothing),
    Fault.ISTIOD_TLS_DELETED: Doing(_delete_secret("istiod-tls"), _nothing),
    Fault.KEY_RECORD_DELETED: Doing(_delete_secret("istio-ca-encrypted-key"), _nothing),
    Fault.DISK_FULL: Doing(_fill, _empty),
    Fault.CLOCK_AHEAD: _clock(_bridge, _SKEW_SECONDS),
    Fault.CLOCK_BEHIND: _clock(_bridge, -_SKEW_SECONDS),
    Fault.DELIVERY_CLOCK: _clock(_delivery, 24 * 3600),
    Fault.PLUGIN_CLOCK: _clock(_plugin, 3600),
}
"""Every fault; a test holds that none is missing."""
