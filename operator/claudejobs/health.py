"""/healthz: is the process alive; /readyz: does it do its work, and how well; /metrics: figures for Prometheus."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from claudejobs.metrics import Metrics
from claudejobs.settings import Settings
from claudejobs.store import Store

if TYPE_CHECKING:
    from claudejobs.intake.manager import Intake
    from claudejobs.kube.controller import Controller
    from claudejobs.kube.lease import Election
    from claudejobs.kube.watch import Watch


class HealthServer:
    """Serves the probes and the metrics. A database or a Redis that is away degrades the operator, and does not make
    it unready: jobs go on. A standby is ready when it could take over, so that rollouts and disruption budgets count
    it."""

    def __init__(
        self,
        settings: Settings,
        controller: Controller,
        store: Store,
        watch: Watch,
        election: Election | None,
        intake: Intake,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._election = election
        self._intake = intake
        self._metrics = metrics
        self._controller = controller
        self._store = store
        self._watch = watch
        self._runner: web.AppRunner | None = None
        self.port = settings.health_port

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._figures)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "0.0.0.0", self._settings.health_port)  # noqa: S104 - the kubelet probes it
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """That this answers shows that the event loop turns; a listing that is long overdue shows that nothing else
        does."""
        last = self._controller.last_resync
        overdue = last is not None and time.monotonic() - last > 3 * self._settings.resync_seconds + 60
        ok = not (overdue or self._watch.failed.is_set())
        return web.json_response({"ok": ok}, status=200 if ok else 503)

    async def _figures(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _readyz(self, _: web.Request) -> web.Response:
        health = asdict(self._store.health)
        health["since"] = health["since"].isoformat()
        redis = self._intake.health()
        standby = self._election is not None and not self._election.acquired.is_set()
        if standby:
            # Not the database: a standby reads and writes nothing there yet.
            ready = self._election is not None and self._election.standing_by
            state = "standby" if ready else "starting"
        else:
            ready = self._controller.last_resync is not None
            well = health["state"] == "ok" and redis["state"] == "ok"
            state = "starting" if not ready else ("ok" if well else "degraded")
        return web.json_response({"state": state, "database": health, "redis": redis}, status=200 if ready else 503)
