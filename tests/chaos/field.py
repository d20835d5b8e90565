"""The arenas of a session, and the enumeration of fault points."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

from .api import JOBS, PODS
from .arena import Arena, Run
from .faults import ON_EVENT, ON_WRITE, Fault, Kind

FULL = os.environ.get("CHAOS") == "full"
"""Every point of every scenario, instead of those that fit into some minutes."""

TRIED: Counter[str] = Counter()
"""Fault points tried in this session, by kind; only faults that struck are counted."""

FIGURES: Counter[str] = Counter()
"""What else this session has counted, for the line that sums it up."""

NOTES: list[str] = []
"""What else is to be said at the end of the session."""


class Field:
    """Plays many runs at a time, and knows how each scenario comes out when nothing goes wrong."""

    def __init__(self, arenas: list[Arena]) -> None:
        self._arenas = arenas
        self._free: asyncio.Queue[Arena] = asyncio.Queue()
        for arena in arenas:
            self._free.put_nowait(arena)
        self._references: dict[str, Run] = {}

    async def run(self, scenario: str, fault: Fault | None = None, bug: str | None = None, timeout: float = 40) -> Run:
        """One run, as soon as an arena is free; compared with the run without fault."""
        expected = (await self.reference(scenario)).outcome
        async with self.arena() as arena:
            return await arena.run(scenario, fault, expected, bug, timeout)

    @asynccontextmanager
    async def arena(self) -> AsyncIterator[Arena]:
        """An arena, as soon as one is free."""
        arena = await self._free.get()
        try:
            yield arena
        finally:
            self._free.put_nowait(arena)

    async def reference(self, scenario: str) -> Run:
        """The run without fault; made twice, to be sure that it always comes out the same."""
        if scenario not in self._references:
            async with self.arena() as arena:
                first = await arena.run(scenario)
                assert not first.trouble, f"{scenario} without a fault: {first.trouble}"
                second = await arena.run(scenario, expected=first.outcome)
                assert not second.trouble, f"{scenario} without a fault, again: {second.trouble}"
                self._references[scenario] = first if len(first.writes) >= len(second.writes) else second
        return self._references[scenario]

    async def try_all(self, scenario: str, faults: Iterable[Fault]) -> list[str]:
        """Try fault points, several at a time; what went wrong."""

        async def one(fault: Fault) -> str:
            run = await self.run(scenario, fault)
            TRIED[fault.kind] += run.hit
            return f"{scenario}: {fault}:\n  {run.trouble}" if run.trouble else ""

        return [trouble for trouble in await asyncio.gather(*map(one, faults)) if trouble]


def write_faults(run: Run, kinds: Iterable[Kind] = ON_WRITE) -> Iterator[Fault]:
    """Each kind at each write of an unfaulted run."""
    for kind in kinds:
        for at in range(1, len(run.writes) + 1):
            yield Fault(kind, at)


def stale_faults(run: Run) -> Iterator[Fault]:
    """After each write a crash, and a successor whose first view is old: of jobs, of pods, or of both."""
    views = [((PODS,), 1), ((PODS,), 2), ((JOBS,), 2), ((JOBS,), 3), ((JOBS, PODS), 2)]
    if FULL:
        views = [(which, depth) for which in ((PODS,), (JOBS,), (JOBS, PODS)) for depth in (1, 2, 3)]
    for at in range(1, len(run.writes) + 1):
        for which, depth in views:
            if depth <= at:
                yield Fault(Kind.STALE, at, stale=which, depth=depth)


def event_faults(run: Run, kinds: Iterable[Kind] = ON_EVENT) -> Iterator[Fault]:
    """Each kind at each event of an unfaulted run."""
    for kind in kinds:
        for stream, count in sorted(run.events.items()):
            for at in range(1, count + 1):
                yield Fault(kind, at, stream)
