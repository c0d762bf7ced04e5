"""Inspect: what the plugin knows of its token, its keys and itself (see inspection_v1.proto)."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version

from hsm_plugin.audit_chain import Head
from hsm_plugin.keys import AsyncKeyStore
from hsm_plugin.worker_snapshot import WorkerSnapshot
from istio_hsm_proto import inspection_v1_pb2 as pb


class Inspection:
    """The call, from message to message. Raises HsmPluginError."""

    def __init__(
        self,
        store: AsyncKeyStore,
        snapshot: Callable[[], Awaitable[tuple[int, WorkerSnapshot] | None]],
        audit_head: Callable[[], Head],
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._audit_head = audit_head

    async def inspect(self, _: pb.InspectRequest) -> pb.InspectResponse:
        """Answer what there is to know."""
        keys = await self._store.inspect()
        seen = await self._snapshot()
        head = self._audit_head()
        response = pb.InspectResponse(
            version=version("istio-hsm"),
            keys=[
                pb.InspectedKey(
                    key_id=key.key_id,
                    label=key.label,
                    sensitive=key.sensitive,
                    extractable=key.extractable,
                    never_extractable=key.never_extractable,
                    local=key.local,
                )
                for key in keys
            ],
            audit_sequence=head.sequence,
            audit_digest=head.digest if head.sequence else "",
        )
        if seen is not None:
            worker = seen[1]
            response.sessions_open = worker.sessions_open
            response.sessions_limit = worker.sessions_limit
            pins = worker.pins.values()
            response.pin_values_refused = sum(pin.refused_values for pin in pins)
            response.pin_values_pending = sum(pin.pending_values for pin in pins)
        return response
