"""What must hold at the end, looked for in the logs, the token and what the sidecars got."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pkcs11 import Attribute, ObjectClass

from chaos.conductor import RECOVERY_SECONDS, Conductor
from chaos.report import Finding
from chaos.sidecars import Tally
from chaos.site import Site
from chaos.supervisor import Exit
from chaos.usage import Usage, growth
from demo.processes import DemoError, run
from tests.support.plugin import program
from tests.support.token_view import viewed

_AUDIT_KEY = "audit-checkpoint"
_SHOWN = 5
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{40,}")


def judge(site: Site, conductor: Conductor, tally: Tally) -> list[Finding]:
    """Return every finding; ends the product's processes on the way."""
    findings = [_recovered(conductor), _none_lost(tally), _all_right(tally)]
    listed = _told(lambda: run([program("hsm-plugin"), "list-keys"], {"SOCKET": str(site.socket)}))
    findings.append(_flat(conductor.at_rest))
    codes = {bridge.name: bridge.stop() for bridge in site.bridges}
    audit_key = site.folder / "audit-key.pem"
    told_key = _told(
        lambda: run([program("hsm-plugin"), "audit", "public-key"], {"SOCKET": str(site.socket)})
    )
    audit_key.write_text(told_key + "\n")
    codes |= {process.name: process.stop() for process in (site.delivery, site.plugin)}
    findings.append(_ended_in_order(codes))
    findings.append(_ended_by_chaos([it for process in site.ours for it in process.exits]))
    findings.append(_logged_once(site, tally))
    findings += _verified(site, audit_key)
    findings.append(_no_orphans(site, listed))
    findings += [_no_canary(site), _no_traceback(site)]
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
        _few(tally.lost) or f"{len(tally.received)} requests, all answered in the end",
    )


def _all_right(tally: Tally) -> Finding:
    return Finding(
        "every certificate has the caller's identity and key, and the CA's signature",
        not tally.wrong,
        _few(tally.wrong) or f"{len(tally.received)} certificates",
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
        _few(grown) or f"{len(at_rest)} processes, {sum(map(len, at_rest.values()))} samples",
    )


def _ended_in_order(codes: Mapping[str, int]) -> Finding:
    wrong = [f"{name}: {code}" for name, code in codes.items() if code]
    return Finding(
        "at SIGTERM every process ends with exit code 0", not wrong, _few(wrong) or ", ".join(codes)
    )


def _ended_by_chaos(exits: Sequence[Exit]) -> Finding:
    own = [f"{it.name}: {it.code}" for it in exits if not it.was_sent]
    return Finding(
        "no process ends that chaos did not end",
        not own,
        _few(own) or f"{len(exits)} ends, all by chaos",
    )


def _logged_once(site: Site, tally: Tally) -> Finding:
    logged = Counter(_serials(site))
    got = Counter(f"{serial:x}" for serial, _ in tally.received)
    missing = [it for it in got if it not in logged]
    twice = [it for it, count in logged.items() if count > 1]
    twice += [it for it, count in got.items() if count > 1]
    told = [f"{it} is in no log" for it in missing] + [f"{it} is there twice" for it in twice]
    return Finding(
        "every certificate that a sidecar got is in an issuance log exactly once",
        not told,
        _few(told) or f"{len(got)} of {len(logged)} logged; the rest did not reach their sidecars",
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


def _no_orphans(site: Site, listed: str) -> Finding:
    """Hold the token's objects against what the mesh needs: a KEK, the CA key, the audit key."""
    with viewed(site.hsm.hsm) as token:
        private = [bytes(it[Attribute.ID]) for it in token.objects(ObjectClass.PRIVATE_KEY)]
        public = [bytes(it[Attribute.ID]) for it in token.objects(ObjectClass.PUBLIC_KEY)]
        keks = len(token.objects(ObjectClass.SECRET_KEY))
    ids = sorted(it.decode(errors="replace") for it in private)
    others = [it for it in ids if it != _AUDIT_KEY]
    is_right = (
        len(others) == 1
        and len(ids) == len(set(ids)) == 2  # noqa: PLR2004 - the CA's and the audit log's
        and sorted(public) == sorted(private)
        and keks == 1
        and all(it in listed for it in ids)
    )
    return Finding(
        "the token holds the CA key, the audit log's key and the KEK, and nothing else",
        is_right,
        f"private keys {', '.join(ids)}; {len(public)} public keys, {keks} secret keys"
        + ("" if is_right else f"; list-keys: {listed}"),
    )


def _no_canary(site: Site) -> Finding:
    canaries = dict(_canaries(site))
    texts = dict(_logs(site))
    found = [
        f"{what} in {name}"
        for name, text in texts.items()
        for what, canary in canaries.items()
        if canary in text
    ]
    return Finding(
        "no log holds a PIN, a token or a key",
        not found,
        _few(found) or f"{len(canaries)} canaries, {len(texts)} logs",
    )


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
    return Finding("no log of ours holds a traceback", not found, _few(found) or "none")


def _told(command: Callable[[], str]) -> str:
    try:
        return command()
    except DemoError as error:
        return str(error)


def _few(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
