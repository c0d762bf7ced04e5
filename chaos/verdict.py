"""What must hold at the end, looked for in the logs, the token and what the sidecars got."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pkcs11 import Attribute, ObjectClass

from chaos.conductor import RECOVERY_SECONDS, Conductor
from chaos.invariants import (
    ended_by_chaos,
    ended_in_order,
    few,
    logged_once,
    no_canary,
    no_orphans,
    told_in_events,
)
from chaos.report import Finding
from chaos.sidecars import Tally
from chaos.site import Site
from chaos.usage import Usage, growth
from demo.processes import DemoError, run
from tests.support.plugin import program
from tests.support.token_view import viewed

_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{40,}")


def judge(site: Site, conductor: Conductor, tally: Tally) -> list[Finding]:
    """Return every finding; ends the product's processes on the way."""
    findings = [_recovered(conductor), _none_lost(tally), _all_right(tally)]
    listed = _told(lambda: run([program("hsm-plugin"), "list-keys"], {"SOCKET": str(site.socket)}))
    findings.append(_flat(conductor.at_rest))
    struck = [blow.fault for outcome in conductor.outcomes for blow in outcome.blows]
    findings.append(told_in_events(struck, site.event_reasons()))
    codes = {bridge.name: bridge.stop() for bridge in site.bridges}
    audit_key = site.folder / "audit-key.pem"
    told_key = _told(
        lambda: run([program("hsm-plugin"), "audit", "public-key"], {"SOCKET": str(site.socket)})
    )
    audit_key.write_text(told_key + "\n")
    codes |= {process.name: process.stop() for process in (site.delivery, site.plugin)}
    findings.append(ended_in_order(codes))
    findings.append(ended_by_chaos([it for process in site.ours for it in process.exits]))
    findings.append(logged_once(_serials(site), [f"{serial:x}" for serial, _ in tally.received]))
    findings += _verified(site, audit_key)
    findings.append(_keys(site, listed))
    findings += [no_canary(dict(_canaries(site)), dict(_logs(site))), _no_traceback(site)]
    return findings


def _recovered(conductor: Conductor) -> Finding:
    never = [
        f"{it.name} ({', '.join(it.trouble)})" for it in conductor.outcomes if it.recovery is None
    ]
    return Finding(
        f"everything is sound again within {RECOVERY_SECONDS:.0f} s of each fault's end, by itself",
        bool(conductor.outcomes) and not never,
        "; ".join(never) or f"{len(conductor.outcomes)} strokes",
    )


def _none_lost(tally: Tally) -> Finding:
    return Finding(
        "no request fails for good",
        bool(tally.received) and not tally.lost,
        few(tally.lost) or f"{len(tally.received)} requests, all answered in the end",
    )


def _all_right(tally: Tally) -> Finding:
    return Finding(
        "every certificate has the caller's identity and key, and the CA's signature",
        not tally.wrong,
        few(tally.wrong) or f"{len(tally.received)} certificates",
    )


def _flat(at_rest: Mapping[tuple[str, int], Sequence[Usage]]) -> Finding:
    grown = [
        f"{name} ({pid}): {', '.join(found)}"
        for (name, pid), samples in at_rest.items()
        if (found := growth(samples))
    ]
    return Finding(
        "memory, threads and files of each process stay flat",
        not grown,
        few(grown) or f"{len(at_rest)} processes, {sum(map(len, at_rest.values()))} samples",
    )


def _serials(site: Site) -> Iterator[str]:
    for path in (it for log in site.issuance_logs for it in _parts(log)):
        for line in path.read_bytes().splitlines():
            entry = json.loads(line)
            if entry["kind"] == "issued" and "identity" in entry:
                yield entry["serial"]


def _parts(log: Path) -> list[Path]:
    """Return a log's files: the one that is written and those put aside."""
    return sorted(
        it
        for it in log.parent.glob(f"{log.name}*")
        if re.fullmatch(r"(\.\d+)?", it.name[len(log.name) :])
    )


def _verified(site: Site, audit_key: Path) -> Iterator[Finding]:
    chain = site.folder / "cert-chain.pem"
    chain.write_bytes(site.chain)
    bridge, plugin = program("istiod-ca-bridge"), program("hsm-plugin")
    for log in site.issuance_logs:
        yield _command(
            f"`istiod-ca-bridge log verify` finds {log.name} intact",
            [bridge, "log", "verify", "--ca", str(chain), *map(str, _parts(log))],
        )
    yield _command(
        f"`hsm-plugin audit verify` finds {site.audit_log.name} whole",
        [
            *(plugin, "audit", "verify", "--public-key", str(audit_key)),
            *map(str, _parts(site.audit_log)),
        ],
    )


def _command(invariant: str, command: list[str]) -> Finding:
    try:
        told = run(command, {})
    except DemoError as error:
        return Finding(invariant, holds=False, told=str(error).partition("\n")[2].strip())
    return Finding(invariant, holds=True, told=told.splitlines()[0])


def _keys(site: Site, listed: str) -> Finding:
    with viewed(site.hsm.hsm) as token:
        private, public = (
            [bytes(it[Attribute.ID]).decode(errors="replace") for it in token.objects(kind)]
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
        )
        keks = len(token.objects(ObjectClass.SECRET_KEY))
    return no_orphans(private, public, keks, listed)


def _canaries(site: Site) -> Iterator[tuple[str, str]]:
    yield "the PIN", site.credentials["PIN"]
    yield "Vault's root token", site.bao.root_token
    for number, token in enumerate(site.tokens):
        yield f"token {number}", token.rpartition(".")[2]
    lines = _KEY_LINE.findall(site.credentials["clientkey"])
    for number, line in enumerate(lines):
        yield f"line {number} of the HSM client's key", line


def _logs(site: Site) -> Iterator[tuple[str, str]]:
    for process in site.ours:
        yield process.log.name, process.log.read_text(errors="replace")
    for path in (it for log in (*site.issuance_logs, site.audit_log) for it in _parts(log)):
        yield path.name, path.read_text(errors="replace")
    yield "bao.log", (site.bao.folder / "bao.log").read_text(errors="replace")
    yield "the cluster's logs", site.kube.logs(1_000_000)


def _no_traceback(site: Site) -> Finding:
    found = [it.log.name for it in site.ours if "Traceback" in it.log.read_text(errors="replace")]
    return Finding("no log of ours holds a traceback", not found, few(found) or "none")


def _told(command: Callable[[], str]) -> str:
    try:
        return command()
    except DemoError as error:
        return str(error)
