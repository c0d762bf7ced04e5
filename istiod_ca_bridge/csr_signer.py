"""The signer of istiod's CertificateSigningRequests, for EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API.

Level-triggered: a watch says which requests are open, and each is answered as soon as it can be.
Several replicas may do so at once: the API server takes the first answer, the rest are dropped.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Container
from datetime import datetime

from istiod_ca_bridge.authority import Authority, new_serial
from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.errors import (
    AnsweredElsewhereError,
    BridgeError,
    ClusterUnavailableError,
    ForbiddenError,
    NotServingError,
    RefusedRequestError,
)
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.ledger import Ledger, of_request
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics, SignError
from istiod_ca_bridge.observed import Listing
from istiod_ca_bridge.policy import check_not_listed
from istiod_ca_bridge.signing_request import (
    SigningPolicy,
    SigningRequest,
    SigningRequests,
    grant_request,
)

_AT_ONCE = 12
"""Answers under way; more wait their turn."""

_RELIST_PAUSE_SECONDS = 0.05
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
"""istiod waits 60 s for an answer."""


class CsrSigner:
    """Answers the open requests to its signers."""

    def __init__(
        self,
        requests: SigningRequests,
        signers: tuple[str, ...],
        policy: SigningPolicy,
        authority: Callable[[], Authority | None],
        clock: Callable[[], datetime],
        log: EventLog,
        metrics: Metrics,
        *,
        ledger: Ledger | None = None,
        blocked_keys: Container[bytes] = frozenset(),
    ) -> None:
        self._requests = requests
        self._signers = signers
        self._policy = policy
        self._authority = authority
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._ledger = ledger
        self._blocked_keys = blocked_keys
        self._open: dict[str, SigningRequest] = {}
        self._began: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    async def run(self) -> None:
        """Watch and answer until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for signer in self._signers:
                tasks.create_task(self._follow(signer))
            for _ in range(_AT_ONCE):
                tasks.create_task(self._work())

    async def _follow(self, signer: str) -> None:
        failures = 0
        while True:
            try:
                async with contextlib.aclosing(self._requests.open(signer)) as events:
                    async for event in events:
                        if failures:
                            self._log.info("csr.watched_again", signer=signer)
                        failures = 0
                        if isinstance(event, Listing):
                            self._replace(signer, event)
                        else:
                            self._change(event.name, event.content)
                await asyncio.sleep(_RELIST_PAUSE_SECONDS)
            except ClusterUnavailableError as error:
                if not failures:
                    self._log.warning(
                        "csr.not_watched", signer=signer, reason=str(error), hint=error.hint
                    )
                await asyncio.sleep(_pause(failures))
                failures += 1

    def _replace(self, signer: str, listing: Listing[SigningRequest]) -> None:
        gone = [
            name
            for name, request in self._open.items()
            if request.signer == signer and name not in listing.contents
        ]
        for name in gone:
            self._change(name, None)
        for name, request in listing.contents.items():
            self._change(name, request)

    def _change(self, name: str, request: SigningRequest | None) -> None:
        if request is None:
            self._open.pop(name, None)
            self._attempts.pop(name, None)
            self._began.pop(name, None)
        else:
            self._open[name] = request
            self._mark(name)

    def _mark(self, name: str) -> None:
        if name not in self._queued:
            self._queued.add(name)
            self._due.put_nowait(name)

    async def _work(self) -> None:
        while True:
            name = await self._due.get()
            request = self._open.get(name)
            pause = None if request is None else await self._handle(request)
            if pause is not None:
                asyncio.get_running_loop().call_later(pause, self._due.put_nowait, name)
                continue
            self._queued.discard(name)
            now_open = self._open.get(name)
            if now_open is not None and now_open is not request:
                self._mark(name)

    async def _handle(self, request: SigningRequest) -> float | None:
        """Answer; return after how many seconds to try again, None for never."""
        if request.name not in self._began:
            self._metrics.csrs.inc()
        began = self._began.setdefault(request.name, time.monotonic())
        try:
            status = await self._answer(request)
            self._metrics.answered(status, "csr", time.monotonic() - began)
        except AnsweredElsewhereError:
            self._log.debug("csr.answered_elsewhere", csr=request.name)
        except BridgeError as error:
            attempts = self._attempts.get(request.name, 0)
            if not attempts:
                self._log.warning(
                    "csr.delayed", csr=request.name, reason=str(error), hint=error.hint
                )
                self._metrics.not_signed(_sign_error(error))
            self._attempts[request.name] = attempts + 1
            return _pause(attempts)
        self._settled(request)
        return None

    def _settled(self, request: SigningRequest) -> None:
        self._attempts.pop(request.name, None)
        if self._open.get(request.name) is request:
            del self._open[request.name]
            self._began.pop(request.name, None)

    async def _answer(self, request: SigningRequest) -> str:
        """Return how it was answered, by the gRPC status that an agent would have got."""
        authority = self._authority()
        if authority is None:
            raise NotServingError("the CA has no certificate yet")
        try:
            grant = grant_request(
                request,
                self._policy,
                now=self._clock(),
                ca_not_after=authority.not_after,
                serial=new_serial(),
            )
            check_not_listed(grant.subject_key, self._blocked_keys, authority.own_keys)
        except (ForbiddenError, RefusedRequestError) as error:
            return await self._refuse(request, error)
        leaf = await issue(authority.issuer, grant)
        names = (*grant.uris, *grant.dns_names)
        if self._ledger is not None:
            await self._ledger.record(of_request(leaf, authority, names, request.requestor))
        await self._requests.issue(request, pem_of(leaf) + authority.intermediates_pem)
        self._metrics.issued.inc()
        self._log.info(
            "certificate.issued",
            identity=",".join(names),
            serial=f"{leaf.serial_number:x}",
            not_after=leaf.not_valid_after_utc,
            by="csr",
            csr=request.name,
            requestor=request.requestor,
        )
        return "OK"

    async def _refuse(self, request: SigningRequest, error: BridgeError) -> str:
        reason = "Forbidden" if isinstance(error, ForbiddenError) else "Invalid"
        await self._requests.fail(request, reason, str(error))
        self._log.warning(
            "certificate.refused",
            status=reason,
            reason=str(error),
            hint=error.hint,
            csr=request.name,
            requestor=request.requestor,
        )
        if isinstance(error, ForbiddenError):
            self._metrics.unauthenticated.inc()
            return "PERMISSION_DENIED"
        self._metrics.bad_csrs.inc()
        self._metrics.not_signed(SignError.CSR)
        return "INVALID_ARGUMENT"


def _sign_error(error: BridgeError) -> SignError:
    return SignError.NOT_READY if isinstance(error, NotServingError) else SignError.OTHER


def _pause(failures: int) -> float:
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 10), _LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
