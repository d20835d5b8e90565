"""The operator: reads its settings, starts its parts in order, and stops them in the reverse.

Where to find what: what a job needs next is decided in ``reconcile/decide.py``; ``kube/controller.py`` sees and
acts; ``store/`` mirrors attempts into the database; ``runner/`` is what runs in a job's pod.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress

from pythonjsonlogger.json import JsonFormatter

from claudejobs import __version__
from claudejobs.health import HealthServer
from claudejobs.kube.client import ApiError, KubeClient
from claudejobs.kube.controller import Controller
from claudejobs.kube.watch import Watch
from claudejobs.settings import Settings
from claudejobs.store import Store

logger = logging.getLogger(__name__)


def configure_logging(level: str) -> None:
    """One JSON object per line on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("kopf", "aiohttp.access", "aiosqlite", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.getLevelName(level), logging.WARNING))
    # It warns that it gets no signals in its thread, which is what is wanted.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


async def run_operator(settings: Settings, stop: asyncio.Event) -> int:
    """Run until ``stop`` is set or the watch fails; the process's exit code.

    Raises:
        StoreConfigError: DATABASE_URL can never work.
        ApiError: there is no usable cluster configuration.
    """
    store = Store(settings.database_url.get_secret_value())
    async with KubeClient.connect() as client:
        controller = Controller(client, store, settings)
        watch = Watch(settings, controller.on_job, controller.on_pod)
        health = HealthServer(settings, controller, store, watch)
        await health.start()
        await store.start()
        try:
            if not await _start_controller(controller, stop):
                return 0
            watch.start()
            logger.info("started", extra={"version": __version__, "runner_image": settings.runner_image})
            failed = await _first_of(stop, watch.failed)
        finally:
            await watch.stop()
            await controller.stop()
            await store.stop()
            await health.stop()
    logger.info("stopped")
    return 1 if failed else 0


async def _start_controller(controller: Controller, stop: asyncio.Event) -> bool:
    """Start as soon as the API server answers; whether that came before the stop."""
    delay = 0.5
    while not stop.is_set():
        try:
            await controller.start()
        except ApiError as error:
            logger.warning("the first listing failed: %s; again in %.1f s", error, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), delay)
            delay = min(delay * 2, 15.0)
        else:
            return True
    return False


async def _first_of(stop: asyncio.Event, failed: asyncio.Event) -> bool:
    waits = [asyncio.create_task(event.wait()) for event in (stop, failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return failed.is_set() and not stop.is_set()


def main(settings: Settings) -> int:
    """Run the operator in this process until SIGTERM or SIGINT; the exit code."""
    configure_logging(settings.log_level)

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await run_operator(settings, stop)

    return asyncio.run(run())
