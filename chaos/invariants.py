"""What must hold, judged from plain facts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chaos.faults import Fault
from chaos.report import Finding
from chaos.supervisor import Exit

AUDIT_KEY = "audit-checkpoint"
_SHOWN = 5
_EVENTS = {
    Fault.CHAIN_SPOILT: "Refused",
    Fault.CHAIN_FOREIGN: "Refused",
    Fault.KEY_RECORD_DELETED: "KeySecretRestored",
}
"""The reason of the Event that tells an operator."""


def logged_once(logged: Iterable[str], got: Iterable[str]) -> Finding:
    """Hold the serials that sidecars got against those in all issuance logs."""
    times, received = Counter(logged), Counter(got)
    told = [f"{it} is in no log" for it in received if it not in times]
    told += [f"{it} is logged {count} times" for it, count in times.items() if count > 1]
    told += [f"{it} was given {count} times" for it, count in received.items() if count > 1]
    unseen = len(times) - len(received)
    return Finding(
        "every certificate that a sidecar got is in an issuance log exactly once",
        bool(received) and not told,
        few(told) or f"{len(received)} certificates; {unseen} more were logged and did not arrive",
    )


def no_orphans(private: Sequence[str], public: Sequence[str], keks: int, listed: str) -> Finding:
    """Hold the token's objects against what the mesh needs."""
    cas = [it for it in private if it != AUDIT_KEY]
    is_right = (
        len(cas) == 1
        and sorted(private) == sorted([*cas, AUDIT_KEY])
        and sorted(public) == sorted(private)
        and keks == 1
        and all(it in listed for it in cas)
    )
    told = (
        f"private keys {', '.join(sorted(private))}; {len(public)} public keys, {keks} secret keys"
    )
    return Finding(
        "the token holds the CA key, the audit log's key and the KEK, and nothing else",
        is_right,
        told if is_right else f"{told}; list-keys: {listed}",
    )


def no_canary(canaries: Mapping[str, str], logs: Mapping[str, str]) -> Finding:
    """Look for each secret, by what it is, in each log."""
    found = [
        f"{what} in {name}"
        for name, text in logs.items()
        for what, canary in canaries.items()
        if canary in text
    ]
    return Finding(
        "no log holds a PIN, a token or a key",
        bool(canaries) and all(logs.values()) and not found,
        few(found) or f"{len(canaries)} canaries, {len(logs)} logs",
    )


def ended_in_order(codes: Mapping[str, int]) -> Finding:
    """Judge exit codes after SIGTERM."""
    wrong = [f"{name}: {code}" for name, code in codes.items() if code]
    return Finding(
        "at SIGTERM every process ends with exit code 0", not wrong, few(wrong) or ", ".join(codes)
    )


def ended_by_chaos(exits: Sequence[Exit]) -> Finding:
    """Judge the ends of processes that should have run."""
    own = [f"{it.name}: {it.code}" for it in exits if not it.was_sent]
    return Finding(
        "no process ends that chaos did not end",
        not own,
        few(own) or f"{len(exits)} ends, all by chaos",
    )


def told_in_events(struck: Iterable[Fault], reasons: Iterable[str]) -> Finding:
    """Hold the Events of the bridge's namespace against what was done to its Secrets."""
    seen = set(reasons)
    expected = {it: _EVENTS[it] for it in set(struck) if it in _EVENTS}
    missing = [f"{it.title}: no {reason}" for it, reason in expected.items() if reason not in seen]
    return Finding(
        "what was done to the bridge's Secrets is told in Kubernetes Events",
        not missing,
        few(missing) or ", ".join(sorted(set(expected.values()))) or "nothing was done to them",
    )


def few(items: Sequence[str]) -> str:
    """Return the first of them, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
