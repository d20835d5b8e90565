"""Passes the jobs' requests on to the model API, and streams the answers back."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from .admission import Job
from .identity import Identities
from .key import KeyFile
from .ledger import Ledger
from .limits import Closures, Rate
from .metrics import Metrics
from .prices import PriceTable
from .refusal import RefusedError, forbidden, limited
from .registry import Registry
from .requests import NOT_RETURNED, NOT_SENT, Body, end_to_end, model_in, token_of
from .settings import GatewaySettings
from .usage import Meter

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""In place of a model that the request does not name where it is looked for."""

CHUNK_BYTES = 256 * 1024
"""Read ahead of a client that is slow to take its answer."""


@dataclass(eq=False)
class _Call:
    """One request under way; ``cut`` when its pod has ended."""

    job: Job
    pod_uid: str
    path: str
    task: asyncio.Task[object]
    model: str = UNKNOWN
    status: int = 0
    cut: bool = False
    response: web.StreamResponse | None = None
    began: float = field(default_factory=time.monotonic)


class Proxy:
    """The handlers of the paths that jobs may use. Nothing else of the API is passed on: what files, batches and
    the like would cost is not counted."""

    def __init__(
        self,
        settings: GatewaySettings,
        session: aiohttp.ClientSession,
        identities: Identities,
        registry: Registry,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._session = session
        self._identities = identities
        self._registry = registry
        self.metrics = metrics
        self.key = KeyFile(settings.key_file, settings.key_scheme)
        self.ledger = Ledger(PriceTable(settings.prices))
        self._closures = Closures(settings.max_retry_after, time.monotonic)
        self._job_rate = Rate(settings.requests_per_minute_per_job, "job", time.monotonic)
        self._namespace_rate = Rate(settings.requests_per_minute_per_namespace, "namespace", time.monotonic)
        self._calls: dict[str, set[_Call]] = {}
        registry.on_end = self.cut
        metrics.closed.set_function(lambda: len(self._closures.models))

    def app(self) -> web.Application:
        """The application for the jobs' port; serve it with ``handler_cancellation``, so that a client that goes away
        ends its request at the API at once."""
        app = web.Application()
        app.router.add_post("/v1/messages", self._handle)
        app.router.add_post("/v1/messages/count_tokens", self._handle)
        app.router.add_get("/v1/models", self._handle)
        app.router.add_get("/v1/models/{model}", self._handle)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    def cut(self, pod_uid: str) -> None:
        """End all requests of a pod."""
        for call in self._calls.get(pod_uid, ()):
            call.cut = True
            call.task.cancel()

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        message = f"{request.method} {request.path} is not served; /v1/messages and /v1/models are"
        return self._refuse(RefusedError(404, "not_found_error", "path", message))

    def _refuse(self, refusal: RefusedError) -> web.Response:
        self.metrics.refused.labels(refusal.reason).inc()
        return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            caller = await self._identities.caller(token_of(request.headers))
            job = await self._registry.job_of(caller)
            body = Body(request, self._settings.max_body_bytes)
            self.ledger.check_budget(job)
            account = self.ledger.account(job)
            if account.in_flight >= self._settings.max_requests_in_flight_per_job:
                raise limited("in_flight", f"more than {account.in_flight} requests of one job at a time", 1)
        except RefusedError as refusal:
            return self._refuse(refusal)
        task = asyncio.current_task()
        assert task is not None
        call = _Call(job, caller.pod_uid, request.path, task)
        calls = self._calls.setdefault(caller.pod_uid, set())
        calls.add(call)
        account.in_flight += 1
        try:
            with self.metrics.in_flight.track_inprogress():
                return await self._admitted(request, body, call)
        except RefusedError as refusal:
            return self._refuse(refusal)
        except asyncio.CancelledError:
            if not call.cut:
                raise
            task.uncancel()
            if call.response is not None:
                _hang_up(request)  # the client must see that the answer is not whole
                return call.response
            return self._refuse(forbidden(f"pod {caller.pod} has ended, and its token with it"))
        finally:
            account.in_flight -= 1
            calls.discard(call)
            if not calls:
                self._calls.pop(caller.pod_uid, None)

    async def _admitted(self, request: web.Request, body: Body, call: _Call) -> web.StreamResponse:
        """The limits that concern the model, then the API itself."""
        await body.read_head()
        call.model = model_in(body.head) or UNKNOWN
        headers = end_to_end(request.headers, NOT_SENT)
        headers.update(self.key.headers())
        headers["Accept-Encoding"] = "identity"  # the tokens are read from the answer
        closable = request.path == "/v1/messages"  # what the other paths cost nobody limits together with it
        probe = self._closures.enter(call.model) if closable else False
        try:
            self._job_rate.check(call.job.uid)
            self._namespace_rate.check(call.job.namespace)
            return await self._pass_on(request, body, headers, call, closable)
        finally:
            if probe:
                self._closures.leave(call.model)

    async def _pass_on(
        self, request: web.Request, body: Body, headers: CIMultiDict[str], call: _Call, closable: bool
    ) -> web.StreamResponse:
        data = body.data if request.method == "POST" else None
        url = URL(self._settings.upstream_url + request.rel_url.raw_path_qs, encoded=True)
        meter = Meter(streamed=False)
        try:
            async with self._session.request(
                request.method, url, data=data, headers=headers, allow_redirects=False
            ) as upstream:
                call.status = upstream.status
                self.metrics.first_byte.observe(time.monotonic() - call.began)
                if closable:
                    self._closures.answered(call.model, upstream.status, upstream.headers.get("Retry-After"))
                meter = Meter(upstream.content_type == "text/event-stream")
                call.response = response = web.StreamResponse(
                    status=upstream.status,
                    reason=upstream.reason,
                    headers=end_to_end(upstream.headers, NOT_RETURNED),
                )
                await self._stream(request, upstream, response, meter)
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if body.overlong:
                return self._refuse(RefusedError(413, "request_too_large", "too_large", "the request is too large"))
            return self._broken(request, call.response, error)
        finally:
            meter.end()
            self._account(call, meter, billed=closable and call.status == 200)

    async def _stream(
        self,
        request: web.Request,
        upstream: aiohttp.ClientResponse,
        response: web.StreamResponse,
        meter: Meter,
    ) -> None:
        """Hand over each piece as it comes. A client that does not read stops the reading from the API, too."""
        if upstream.headers.get("Content-Encoding", "identity") != "identity":
            logger.error("the model API encoded an answer unasked: its tokens cannot be counted")
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            meter.feed(chunk)
            async with asyncio.timeout(self._settings.write_timeout):
                await response.write(chunk)
        await response.write_eof()

    def _broken(
        self, request: web.Request, response: web.StreamResponse | None, error: BaseException
    ) -> web.StreamResponse:
        """The API cannot be reached, or broke off; or the client does not take its answer."""
        text = str(error) or "no answer in time"
        logger.warning("the model API failed: %s: %s", type(error).__name__, text)
        if response is not None:
            _hang_up(request)
            return response
        status = 504 if isinstance(error, TimeoutError) else 502
        reason = "upstream_timeout" if status == 504 else "upstream"
        message = "the model API does not answer" if status == 504 else "the model API cannot be reached"
        return self._refuse(RefusedError(status, "api_error", reason, message))

    def _account(self, call: _Call, meter: Meter, billed: bool) -> None:
        """Count the call, however it ended; a log line has what the metrics do not."""
        job, model, cost = call.job, meter.model or call.model, None
        if meter.model:
            self.metrics.know(meter.model)
        if billed:
            cost = self.ledger.charge(job, model, meter.usage)
            self.metrics.used(job.namespace, model, meter.usage, cost)
        status = str(call.status or "none")
        self.metrics.requests.labels(job.namespace, self.metrics.model(model), status).inc()
        logger.info(
            "call",
            extra={
                "namespace": job.namespace,
                "job": job.name,
                "job_uid": job.uid,
                "attempt": job.attempt,
                "user_id": job.user,
                "path": call.path,
                "model": model,
                "status": call.status or None,
                "input_tokens": meter.usage.input_tokens,
                "output_tokens": meter.usage.output_tokens,
                "cache_read_tokens": meter.usage.cache_read_tokens,
                "cache_write_tokens": meter.usage.cache_write_tokens,
                "cost_usd": cost if cost is None else round(cost, 6),
                "seconds": round(time.monotonic() - call.began, 3),
            },
        )


def _hang_up(request: web.Request) -> None:
    with suppress(Exception):
        if request.transport is not None:
            request.transport.close()
