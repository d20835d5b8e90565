"""The gateway's process: starts its parts in order, and stops them in the reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp import web

from claudejobs import __version__
from claudejobs.kube.client import KubeClient
from claudejobs.process import run_until_stopped

from .identity import Identities
from .metrics import Metrics
from .proxy import CHUNK_BYTES, Proxy
from .refusal import RefusedError
from .registry import Registry
from .settings import GatewaySettings

logger = logging.getLogger(__name__)

UNREADY_SECONDS = 3.0
"""Between the first unready answer and the end of listening: no connection is refused that was on its way here."""


class Admin:
    """/healthz, /readyz, /metrics and /jobs, on a port that jobs cannot reach."""

    def __init__(self, proxy: Proxy, registry: Registry) -> None:
        self._proxy = proxy
        self._registry = registry
        self.stopping = False

    def app(self) -> web.Application:
        """The application."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/jobs", self._jobs)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        ok = not self._registry.failed
        return web.json_response({"ok": ok}, status=200 if ok else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        """Whether jobs can be served. The model API's own state does not matter here: another replica has no other."""
        try:
            self._proxy.key.headers()
            state = "stopping" if self.stopping else "ok" if self._registry.synced else "starting"
        except RefusedError:
            state = "no key"
        return web.json_response({"state": state}, status=200 if state == "ok" else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._proxy.metrics.render(), content_type="text/plain")

    async def _jobs(self, request: web.Request) -> web.Response:
        """What jobs used, as far as this replica saw; ``?namespace=`` and ``?userId=`` choose."""
        found = self._proxy.ledger.report(request.query.get("namespace"), request.query.get("userId"))
        return web.json_response({"jobs": found})


async def run_gateway(settings: GatewaySettings, stop: asyncio.Event) -> int:
    """Run until ``stop`` is set; the exit code.

    Raises:
        ApiError: there is no usable cluster configuration.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(KubeClient.connect(f"gateway-{socket.gethostname()}-{os.getpid()}"))
        registry = Registry(client, settings.watch_namespaces)
        session = await stack.enter_async_context(upstream_session(settings))
        proxy = Proxy(settings, session, Identities(client), registry, Metrics())
        admin = Admin(proxy, registry)
        registry.start()
        stack.push_async_callback(registry.stop)
        admin_runner = web.AppRunner(admin.app(), access_log=None)
        admin_port = await _listen(admin_runner, settings.host, settings.admin_port)
        stack.push_async_callback(admin_runner.cleanup)
        runner = web.AppRunner(
            proxy.app(), access_log=None, handler_cancellation=True, shutdown_timeout=settings.drain_seconds
        )
        port = await _listen(runner, settings.host, settings.port)
        stack.push_async_callback(runner.cleanup)
        logger.info("started", extra={"version": __version__, "port": port, "admin_port": admin_port})
        await stop.wait()
        admin.stopping = True
        await asyncio.sleep(min(UNREADY_SECONDS, settings.drain_seconds))
    logger.info("stopped")
    return 0


@asynccontextmanager
async def upstream_session(settings: GatewaySettings) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to the model API. Their number is not bounded here: each job's is."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "Accept", "User-Agent", "Content-Type"),
        read_bufsize=CHUNK_BYTES,
    ) as session:
        yield session


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    """Listen; the port."""
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return int(runner.addresses[0][1])


def main(settings: GatewaySettings) -> int:
    """Run the gateway in this process until SIGTERM or SIGINT; the exit code."""
    return run_until_stopped(settings.log_level, lambda stop: run_gateway(settings, stop))
