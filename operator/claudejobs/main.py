"""The operator: reads its settings, starts its parts in order, and stops them in the reverse.

Where to find what: what a job needs next is decided in ``reconcile/decide.py``; ``kube/controller.py`` sees and
acts; ``store/`` mirrors attempts into the database; ``intake/`` drains BullMQ queues into jobs; ``runner/`` is what
runs in a job's pod.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress

from claudejobs import __version__
from claudejobs.health import HealthServer
from claudejobs.intake.manager import Intake
from claudejobs.kube.client import ApiError, KubeClient
from claudejobs.kube.controller import Controller
from claudejobs.kube.lease import Election, new_identity
from claudejobs.kube.watch import Watch
from claudejobs.metrics import Metrics
from claudejobs.process import run_until_stopped
from claudejobs.scrape import Scraped
from claudejobs.settings import Settings
from claudejobs.store import Store

logger = logging.getLogger(__name__)


async def run_operator(settings: Settings, stop: asyncio.Event) -> int:
    """Run until ``stop`` is set, the watch fails or the leadership is lost; the process's exit code.

    Raises:
        StoreConfigError: DATABASE_URL can never work.
        ApiError: there is no usable cluster configuration.
    """
    store = Store(settings.database_url.get_secret_value())
    identity, metrics = new_identity(), Metrics()
    on_write = metrics.api_write
    async with AsyncExitStack() as connections:
        election = None
        if settings.leader_election:
            # A client of its own, which no fence stops and whose connections nothing else uses.
            own = KubeClient.connect(identity, on_write=on_write)
            election = Election(await connections.enter_async_context(own), identity, settings)
        fence = election.fence if election else None
        client = await connections.enter_async_context(KubeClient.connect(identity, fence, on_write))
        controller = Controller(client, store, settings, metrics)
        intake = Intake(client, controller, settings)
        watch = Watch(settings, controller.on_job, controller.on_pod, intake.on_queue, controller.pools.on_pool)
        health = HealthServer(settings, controller, store, watch, election, intake, metrics)
        metrics.registry.register(Scraped(settings, controller, store, intake, election))
        await health.start()
        await store.start()
        if election:
            election.start()
        acting = asyncio.create_task(_act(settings, controller, watch, intake, election), name="acting")
        lost = election.lost if election else asyncio.Event()
        try:
            await _first_of(stop, lost, acting)
            failed = not stop.is_set()
            if failed and acting.done():
                acting.result()  # raises what it failed of
        finally:
            await _stop_acting(acting, intake, controller, 0.0 if lost.is_set() else 10.0)
            if election:
                if lost.is_set():
                    logger.error("the leadership is lost: %s; this process ends", election.reason)
                # Before what only reads or mirrors is stopped, so that the successor need not wait for that. Rows
                # that are written after this are harmless: the database lets no state go back.
                await election.stop()
            await watch.stop(1.0 if lost.is_set() else 5.0)
            await store.stop(0.5 if lost.is_set() else 5.0)
            await health.stop()
    logger.info("stopped")
    return 1 if failed else 0


async def _act(
    settings: Settings, controller: Controller, watch: Watch, intake: Intake, election: Election | None
) -> None:
    """Once this process leads, start what watches and acts; returns when the watch has failed."""
    if election:
        await election.acquired.wait()
    await _start_controller(controller)
    watch.start()
    intake.start()
    logger.info("started", extra={"version": __version__, "runner_image": settings.runner_image})
    await watch.failed.wait()


async def _start_controller(controller: Controller) -> None:
    """Start as soon as the API server answers."""
    delay = 0.5
    while True:
        try:
            await controller.start()
        except ApiError as error:
            logger.warning("the first listing failed: %s; again in %.1f s", error, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 15.0)
        else:
            return


async def _stop_acting(acting: asyncio.Task[None], intake: Intake, controller: Controller, timeout: float) -> None:
    """Cancel the start or the watch over it, then let reconciliations that run end within ``timeout`` seconds."""
    acting.cancel()
    with suppress(Exception, asyncio.CancelledError):
        await acting
    await intake.stop(timeout)
    await controller.stop(timeout)


async def _first_of(stop: asyncio.Event, lost: asyncio.Event, acting: asyncio.Task[None]) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (stop, lost)]
    await asyncio.wait([*waits, acting], return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def main(settings: Settings) -> int:
    """Run the operator in this process until SIGTERM or SIGINT; the exit code."""
    return run_until_stopped(settings.log_level, lambda stop: run_operator(settings, stop))
