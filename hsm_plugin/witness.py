"""Sees every call: counts it, and has its use of a key recorded where that is asked for."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from hsm_plugin.audit_chain import EMPTY, Field, Head, Kind
from hsm_plugin.audit_log import AuditLog
from hsm_plugin.key_use import Caller, fields_of, stock_fields
from hsm_plugin.keys import KekCipher

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class CallWitness:
    """The metrics, and the audit log when there is one."""

    count: Callable[[object, grpc.StatusCode, float], None]
    caller_of: Callable[[str], Caller]
    """Peer, as gRPC names it -> who that is."""
    kek_cipher: KekCipher = KekCipher.GCM
    """That the plugin wraps with."""
    audit: AuditLog | None = None

    def head(self) -> Head:
        """Return the last entry that is on the disk; EMPTY without a log."""
        return self.audit.head if self.audit else EMPTY

    def check(self) -> None:
        """See edge.Witness."""
        if self.audit is not None:
            self.audit.check()

    def ended(
        self,
        request: object,
        response: object,
        code: grpc.StatusCode,
        seconds: float,
        context: Context,
    ) -> Awaitable[None] | None:
        """See edge.Witness."""
        self.count(request, code, seconds)
        if self.audit is None:
            return None
        caller = self.caller_of(context.peer())
        fields = fields_of(request, response, code, seconds, caller, self.kek_cipher)
        return self.audit.record(Kind.USE, fields)

    def stocked(
        self, kek_id: bytes, made: int, code: grpc.StatusCode, seconds: float
    ) -> Awaitable[None] | None:
        """See dek_supply.StockWitness."""
        took = round(1000 * seconds, 2)
        told: Mapping[str, Field] = {"made": made, "outcome": code.name, "ms": took}
        return self._record_stock(kek_id, told)

    def dropped(self, kek_id: bytes, count: int) -> None:
        """See dek_supply.StockWitness."""
        self._record_stock(kek_id, {"dropped": count})

    def _record_stock(self, kek_id: bytes, told: Mapping[str, Field]) -> Awaitable[None] | None:
        if self.audit is None:
            return None
        return self.audit.record(Kind.STOCK, stock_fields(kek_id, told, self.kek_cipher))
