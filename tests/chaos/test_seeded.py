"""The enumeration finds bugs: each deliberate one is caught by the points that are listed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from .api import JOBS, PODS
from .arena import Run
from .faults import Fault, Kind
from .field import FIGURES, NOTES, Field
from .seeded import BUGS, OUTDATED

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TIMEOUT = 15.0
"""Seconds after which a run with a bug counts as stuck; a sound operator needs up to seven."""

POINTS: dict[str, tuple[str, list[Fault | None]]] = {
    "ignore_confirm_gone": ("hello", [Fault(Kind.STALE, 2, stale=(PODS,), depth=2)]),
    "status_before_pod": ("hello", [Fault(Kind.CRASH_AFTER, 1), Fault(Kind.CRASH_BEFORE, 2)]),
    "exists_is_failure": ("hello", [Fault(Kind.LOST_REPLY, 1), Fault(Kind.STALE, 1, stale=(JOBS, PODS))]),
    "never_resync": ("hello", [Fault(Kind.DROP, 1, JOBS), Fault(Kind.DROP, 4, PODS)]),
    "any_uid": ("again", [None]),
    "no_precondition": (
        "retry",
        [Fault(Kind.STALE, at, stale=(JOBS,), depth=depth) for at in (5, 6, 7) for depth in (2, 3)],
    ),
    "no_orphans": ("delete", [Fault(Kind.CRASH_EVENT, at, JOBS) for at in (3, 4)]),
    "random_pod_names": ("hello", [Fault(Kind.CRASH_AFTER, 1), Fault(Kind.LOST_REPLY, 1)]),
}


Runs = dict[str, list[asyncio.Task[Run]]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def runs(field: Field) -> AsyncIterator[Runs]:
    """All runs, begun at once: a bug that leaves a job stuck takes the whole time limit to be seen."""

    async def one(bug: str, scenario: str, fault: Fault | None) -> Run:
        return await field.run(scenario, fault, bug, TIMEOUT)

    for scenario, _ in POINTS.values():
        await field.reference(scenario)
    begun = {
        bug: [asyncio.create_task(one(bug, scenario, fault)) for fault in faults]
        for bug, (scenario, faults) in POINTS.items()
    }
    yield begun
    await asyncio.gather(*(run for of_bug in begun.values() for run in of_bug))


@pytest.mark.parametrize("bug", BUGS)
async def test_a_deliberate_bug_is_caught(bug: str, runs: Runs, field: Field) -> None:
    scenario, faults = POINTS[bug]
    done = await asyncio.gather(*runs[bug])
    assert OUTDATED not in str(done), done
    caught = [fault for fault, run in zip(faults, done, strict=True) if run.trouble]
    kinds = sorted({fault.kind if fault else "no fault at all" for fault in caught})
    NOTES.append(f"bug {bug}: caught at {len(caught)} of {len(faults)} points: {'; '.join(kinds)}")
    assert caught, f"nothing shows {bug}"
    FIGURES["seeded bugs caught"] += 1
    sound = await asyncio.gather(*(field.run(scenario, fault) for fault in caught))
    assert not any(run.trouble for run in sound), "a sound operator fails there, too"
