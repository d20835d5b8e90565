"""What the processes of the operator's image have in common: how they log, and what stops them."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

from pythonjsonlogger.json import JsonFormatter


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
    for chatty in ("kopf", "aiohttp.access", "aiosqlite", "asyncio", "alembic", "redis"):
        logging.getLogger(chatty).setLevel(max(logging.getLevelName(level), logging.WARNING))
    # It warns that it gets no signals in its thread, which is what is wanted.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def run_until_stopped(log_level: str, work: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Do the work of this process, which ends once the event is set: by SIGTERM or SIGINT; the exit code."""
    configure_logging(log_level)

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await work(stop)

    return asyncio.run(run())
