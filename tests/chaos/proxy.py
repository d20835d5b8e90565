"""A proxy between one operator and the API server, which puts one fault into what passes.

The operator speaks plain HTTP to it; the administrator's certificate stays on this side.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from claudejobs.kube.client import POD_SELECTOR, USER_AGENT, jobs_path, pods_path

from .api import JOBS, PODS, Api, lines_of
from .faults import ANSWERS, ON_EVENT, ON_RESTART, ON_WRITE, Fault, Kind

_WRITES = ("POST", "PUT", "PATCH", "DELETE")
_PASSED = ("Content-Type", "Accept", "User-Agent")
_PAGE_TOKEN = "chaos"


class FaultProxy:
    """Attributes:
    writes: the operator's writes since ``begin``, as "POST pods".
    events: how many watch events came since then, by stream.
    streams: how many watches are open, by stream.
    hit: whether the fault has struck.
    """

    def __init__(self, api: Api, namespace: str, crash: Callable[[], Awaitable[None]]) -> None:
        self._api = api
        self._crash = crash
        self._paths = {JOBS: jobs_path(namespace), PODS: pods_path(namespace)}
        self._runner: web.AppRunner | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Condition()
        self.port = 0
        self.begin(None)

    def begin(self, fault: Fault | None) -> None:
        """A new run: count from nought."""
        self.fault = fault
        self.hit = False
        self.writes: list[str] = []
        self.events: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self._snapshots: list[dict[str, bytes]] = []
        self._old_lists: dict[tuple[str, str], bytes] = {}
        self._bad_lists: set[tuple[str, str]] = set()

    async def start(self) -> None:
        """Listen on the loopback."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop."""
        self.disconnect()
        if self._runner:
            await self._runner.cleanup()

    def disconnect(self) -> None:
        """The operator is dead: end its watches."""
        for task in self._open:
            task.cancel()
        self.streams.clear()

    async def watched(self) -> None:
        """Wait until the operator watches both jobs and pods."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.streams[JOBS] and self.streams[PODS])

    def write_kubeconfig(self, path: Path) -> None:
        """A kubeconfig that leads here."""
        cluster = {"name": "chaos", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        user = {"name": "chaos", "user": {"token": "unused"}}
        context = {"name": "chaos", "context": {"cluster": "chaos", "user": "chaos"}}
        document = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user]}
        path.write_text(yaml.safe_dump(document | {"contexts": [context], "current-context": "chaos"}))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            if request.method in _WRITES:
                return await self._write(request, body)
            stream = next((name for name, path in self._paths.items() if request.path == path), None)
            if request.query.get("watch") == "true":
                return await self._tracked(self._watch(request, stream))
            if stream is not None:
                return await self._list(request, stream)
            if request.query.get("follow") == "true":
                return await self._tracked(self._watch(request, None))
            return await self._forward(request, body)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))

    async def _forward(self, request: web.Request, body: bytes = b"") -> web.Response:
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        url = self._api.base + request.path_qs
        async with self._api.session.request(request.method, url, data=body or None, headers=headers) as answer:
            payload = await answer.read()
            kept = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
            return web.Response(status=answer.status, body=payload, headers=kept)

    async def _write(self, request: web.Request, body: bytes) -> web.Response:
        subject = PODS if request.path.startswith("/api/v1/") else JOBS
        self.writes.append(f"{request.method} {subject}")
        ordinal, fault = len(self.writes), self.fault
        if fault is not None and fault.kind is Kind.STALE:
            self._snapshots.append({name: await self._snapshot(name) for name in self._paths})
        if fault is None or self.hit or fault.at != ordinal or fault.kind not in (*ON_WRITE, *ON_RESTART):
            return await self._forward(request, body)
        self.hit = True
        if fault.kind in ANSWERS:
            return _refusal(*ANSWERS[fault.kind])
        if fault.kind not in (Kind.CRASH_BEFORE, Kind.CUT_BEFORE):
            await self._forward(request, body)
        if fault.kind in (Kind.CUT_BEFORE, Kind.LOST_REPLY):
            _cut(request)
        else:
            self._prepare_restart(fault)
            await self._crash()
        return web.Response(status=502)

    def _prepare_restart(self, fault: Fault) -> None:
        """What the next operator's first lists are to be: its own, and those of its watch."""
        lists = [(name, kind) for name in self._paths for kind in ("own", "watch")]
        if fault.kind is Kind.STALE:
            old = self._snapshots[max(0, len(self._snapshots) - fault.depth)]
            self._old_lists = {(name, kind): old[name] for name, kind in lists if name in fault.stale}
        elif fault.kind in (Kind.LIST_410, Kind.LIST_500):
            self._bad_lists = set(lists)

    async def _snapshot(self, stream: str) -> bytes:
        params = {"labelSelector": POD_SELECTOR} if stream == PODS else {}
        async with self._api.session.get(self._api.base + self._paths[stream], params=params) as answer:
            return await answer.read()

    async def _list(self, request: web.Request, stream: str) -> web.Response:
        kind = "own" if request.headers.get("User-Agent", "").startswith(USER_AGENT) else "watch"
        if request.query.get("continue") == _PAGE_TOKEN:
            return _refusal(410, "Expired")
        old = self._old_lists.pop((stream, kind), None)
        if old is not None:
            return web.Response(body=old, content_type="application/json")
        answer = await self._forward(request)
        if (stream, kind) not in self._bad_lists:
            return answer
        self._bad_lists.discard((stream, kind))
        assert self.fault is not None
        if self.fault.kind is Kind.LIST_500:
            return _refusal(500, "InternalError")
        assert isinstance(answer.body, bytes)
        page = json.loads(answer.body)
        page["metadata"]["continue"] = _PAGE_TOKEN
        return web.json_response(page)

    async def _tracked(self, work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        task = asyncio.ensure_future(work)
        self._open.add(task)
        try:
            return await task
        except (asyncio.CancelledError, ConnectionError):
            return web.Response(status=502)
        finally:
            self._open.discard(task)

    async def _watch(self, request: web.Request, stream: str | None) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        timeout = aiohttp.ClientTimeout(total=None)
        url = self._api.base + request.path_qs
        async with self._api.session.get(url, headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": answer.headers["Content-Type"]})
            await response.prepare(request)
            if stream:
                await self._count_stream(stream, 1)
            try:
                async for line in lines_of(answer.content):
                    kind = self._event_fault(stream, line) if stream else None
                    if kind is Kind.CRASH_EVENT:
                        await self._crash()
                        return response
                    if kind is Kind.GONE:
                        await response.write(_GONE)
                        return response
                    if kind is not Kind.DROP:
                        await response.write(line + b"\n")
                    if kind is Kind.CUT_WATCH:
                        _cut(request)
                        return response
            finally:
                if stream:
                    await self._count_stream(stream, -1)
            return response

    def _event_fault(self, stream: str, line: bytes) -> Kind | None:
        """Count the event; the fault that strikes at it, if any."""
        if json.loads(line)["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            return None
        self.events[stream] += 1
        fault = self.fault
        if fault is None or self.hit or fault.kind not in ON_EVENT:
            return None
        if fault.stream != stream or self.events[stream] != fault.at:
            return None
        self.hit = True
        return fault.kind

    async def _count_stream(self, stream: str, by: int) -> None:
        async with self._changed:
            self.streams[stream] = max(0, self.streams[stream] + by)
            self._changed.notify_all()


_GONE = (
    json.dumps(
        {
            "type": "ERROR",
            "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"},
        }
    ).encode()
    + b"\n"
)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _refusal(status: int, reason: str) -> web.Response:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason}
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.json_response(document | {"message": "a fault of the test"}, status=status, headers=headers)
