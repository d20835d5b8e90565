"""Arenas for the session, and the count of fault points at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from claudejobs.store import upgrade
from localcluster import Cluster
from tests.integration.postgres import postgres_server

from .api import Api
from .arena import Arena
from .field import FIGURES, NOTES, TRIED, Field
from .kubelet import fake_node
from .processes import ForkServer

__all__ = ["postgres_server"]

ARENAS = 6
"""Runs at a time. Most of a run is waiting."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with Api.to(cluster) as api:
        yield api


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fork_server() -> AsyncIterator[ForkServer]:
    server = ForkServer()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def node(api: Api) -> AsyncIterator[str]:
    async with fake_node(api) as name:
        yield name


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def field(
    api: Api, fork_server: ForkServer, node: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Field]:
    folder = tmp_path_factory.mktemp("chaos")
    empty = folder / "empty.db"
    await upgrade(f"sqlite:///{empty}")
    arenas = [Arena(api, fork_server, node, folder / f"arena-{n}", empty) for n in range(ARENAS)]
    opened = await asyncio.gather(*(arena.open() for arena in arenas), return_exceptions=True)
    try:
        assert not any(opened), opened
        yield Field(arenas)
    finally:
        await asyncio.gather(*(arena.close() for arena in arenas))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        terminalreporter.section("fault points tried")
        for kind, count in sorted(TRIED.items()):
            terminalreporter.write_line(f"{count:5d}  {kind}")
    if NOTES:
        terminalreporter.section("what else was counted")
    for note in NOTES:
        terminalreporter.write_line(note)
    if TRIED or FIGURES:
        points = [f"{sum(TRIED.values())} fault points of {len(+TRIED)} kinds tried"] if TRIED else []
        terminalreporter.section("; ".join([*points, *(f"{count} {what}" for what, count in FIGURES.items())]))
