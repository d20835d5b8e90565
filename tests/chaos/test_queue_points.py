"""The operator killed at every command that it sends to Redis and at every write: each queue job comes out the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.redis import RedisServer

from .faults import CRASHES, Fault, Kind
from .field import FIGURES, FULL, NOTES, TRIED, Field
from .queue_arena import TIMEOUT, QueueRun, play
from .redis_proxy import RedisFault
from .seeded import OUTDATED, QUEUE_BUGS

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

READS = frozenset(
    {
        "HEXISTS",
        "HGET",
        "HGETALL",
        "HMGET",
        "INFO",
        "LINDEX",
        "LLEN",
        "LOOK_UP",
        "XREAD",
        "XREVRANGE",
        "ZCARD",
        "ZRANGE",
    }
)
"""Commands that change nothing: a crash after one is a crash before the next."""

ROUTINE = READS | {"HSET", "SWEEP", "moveStalledJobsToWait"}
"""Commands of every sweep, which come as often as the run is long."""

EACH = 1000 if FULL else 3
"""How many of the routine commands of a name are tried."""

STRIDE = 1 if FULL else 6
"""Of so many points one is tried, another one for each kind of fault."""

Point = RedisFault | Fault


class QueueField:
    """Plays many runs at a time, and knows how they come out when nothing goes wrong."""

    def __init__(self, field: Field, node: str, server: RedisServer) -> None:
        self._field, self._node, self._server = field, node, server
        self._reference: QueueRun | None = None

    async def run(self, point: Point | None, bug: str | None = None, timeout: float = TIMEOUT) -> QueueRun:
        expected = (await self.reference()).outcome
        async with self._field.arena() as arena:
            return await play(arena, self._node, self._server.port, point, expected, bug, timeout)

    async def reference(self) -> QueueRun:
        """The run without fault; made twice, to be sure that it always comes out the same."""
        if self._reference is None:
            async with self._field.arena() as arena:
                first = await play(arena, self._node, self._server.port)
                assert not first.trouble, first.trouble
                second = await play(arena, self._node, self._server.port, expected=first.outcome)
                assert not second.trouble, second.trouble
                self._reference = first
        return self._reference


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def queues(field: Field, node: str, server: RedisServer) -> AsyncIterator[QueueField]:
    yield QueueField(field, node, server)


KINDS = [*CRASHES, Kind.LOST_REPLY, *([Kind.CUT_BEFORE] if FULL else [])]


def points(run: QueueRun, kind: Kind) -> list[Point]:
    """The points that are tried with a kind of fault."""
    return list(_all_points(run, kind))[KINDS.index(kind) % STRIDE :: STRIDE]


def _all_points(run: QueueRun, kind: Kind) -> Iterator[Point]:
    """Each command and each write of an unfaulted run."""
    for command, count in sorted(run.commands.items()):
        if command in READS and kind is not Kind.CRASH_BEFORE:
            continue
        for at in range(1, min(count, EACH if command in ROUTINE else count) + 1):
            yield RedisFault(kind, command, at)
    if kind in CRASHES:
        yield from (Fault(kind, at) for at in range(1, run.writes + 1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
async def test_a_fault_at_any_point_changes_nothing(kind: Kind, queues: QueueField) -> None:
    reference = await queues.reference()

    async def one(point: Point) -> str:
        run = await queues.run(point)
        TRIED[f"queue jobs: {point.kind}"] += run.hit
        return f"{point}:\n  {run.trouble}" if run.trouble else ""

    troubles = [trouble for trouble in await asyncio.gather(*map(one, points(reference, kind))) if trouble]
    assert not troubles, f"{len(troubles)} points:\n" + "\n".join(troubles)


CAUGHT_AT: dict[str, list[Point]] = {
    "random_resource_names": [Fault(Kind.CRASH_AFTER, at) for at in (1, 2, 3)],
    "chain_only_when_fetched": [RedisFault(Kind.CRASH_AFTER, "moveToActive", at) for at in (1, 2, 3, 4, 5)],
    "random_letters": [RedisFault(Kind.CRASH_BEFORE, "FINISH", at) for at in (1, 2, 3)],
}


@pytest.mark.parametrize("bug", QUEUE_BUGS)
async def test_a_deliberate_bug_is_caught(bug: str, queues: QueueField) -> None:
    await queues.reference()
    tried = CAUGHT_AT[bug]
    runs = await asyncio.gather(*(queues.run(point, bug, 30.0) for point in tried))
    assert OUTDATED not in str(runs), runs
    caught = [point for point, run in zip(tried, runs, strict=True) if run.trouble]
    NOTES.append(f"bug {bug}: caught at {len(caught)} of {len(tried)} points")
    assert caught, f"nothing shows {bug}"
    FIGURES["seeded bugs caught"] += 1
    sound = await asyncio.gather(*map(queues.run, caught))
    assert not any(run.trouble for run in sound), f"a sound operator fails there, too: {sound}"
