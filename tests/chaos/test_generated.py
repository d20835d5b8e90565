"""Jobs made from the CRD's own schema: each is refused with a field's name, or comes to an end or a stated wait."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.categories import Category
from claudejobs.kube.client import ApiError, jobs_path
from claudejobs.reconcile.views import parse_time

from .api import Api, View, eventually
from .arena import Arena, read_rows
from .field import NOTES, Field
from .generate import Generator, spec_schema
from .kubelet import Kubelet, completed, failed, placement

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SPECS = int(os.environ.get("CHAOS_SPECS", "200"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
AT_ONCE = 8
TERMINAL = ("Completed", "Failed", "Cancelled")
STRICT = {"fieldValidation": "Strict"}


class Crowd:
    """Many jobs in one namespace, and a kubelet that ends each pod as soon as it is scheduled."""

    def __init__(self, api: Api, view: View, namespace: str, node: str) -> None:
        self.api, self.view, self.namespace, self._node = api, view, namespace, node
        self._kubelet = Kubelet(api, namespace)
        self.counts: Counter[str] = Counter()

    async def make(self, name: str, spec: dict[str, Any]) -> str:
        """Make a job; the API server's message when it refuses, else nothing."""
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        return await _refused(self.api.request("POST", jobs_path(self.namespace), body, STRICT))

    async def change(self, name: str, **spec: Any) -> str:
        """Change a job's spec; the API server's message when it refuses, else nothing."""
        patch = self.api.request(
            "PATCH", jobs_path(self.namespace, name), {"spec": spec}, STRICT, "application/merge-patch+json"
        )
        return await _refused(patch)

    async def play_kubelet(self) -> None:
        """End what is scheduled, and let go of what is to be deleted, for ever."""
        while True:
            await self.view.until(self._due, "a pod has something to do")
            await asyncio.gather(*(self._advance(pod) for pod in self._due()))

    def place(self, spec: dict[str, Any]) -> None:
        """Keep the job's pods away from nodes that have a kubelet."""
        template = spec.setdefault("podTemplate", {})
        mine = placement(self._node)
        template["nodeSelector"] = template.get("nodeSelector", {}) | mine["nodeSelector"]
        template["tolerations"] = [*template.get("tolerations", []), *mine["tolerations"]]

    def _due(self) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self.view.pods.values()
            if "nodeName" in pod["spec"]
            and ("deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") == "Pending")
        ]

    async def _advance(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            await self._kubelet.remove(name)
        else:
            draw = random.Random(name)
            result = completed() if draw.random() < 0.6 else failed(draw.choice(list(Category)))
            await _refused(self._kubelet.end(name, result))
        await self.view.until(lambda: self.view.pods.get(name) != pod, f"the change of {name} is seen")


async def _refused(request: Awaitable[Any]) -> str:
    try:
        await request
    except ApiError as error:
        if error.status in (400, 422):
            return error.message
        if error.status not in (404, 409):  # gone meanwhile
            raise
    return ""


async def _in_parallel(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(n: int) -> None:
        async with limit:
            await work(n)

    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(one(n))


def _rests(job: dict[str, Any]) -> bool:
    """Whether the job is at its end, or says what it waits for."""
    status = job.get("status", {})
    phase = status.get("phase")
    if phase == "Suspended":
        return bool(job["spec"].get("suspend"))
    if phase == "Backoff":
        due = parse_time(status.get("nextAttemptTime"))
        return due is not None and due > datetime.now(UTC) and bool(status["message"])
    return phase in TERMINAL or (phase == "Pending" and status.get("reason") in ("PodForbidden", "Dependencies"))


async def _live_through(crowd: Crowd, n: int) -> None:
    """Make one valid spec, and change what may change."""
    generator, draw = Generator(SEED * 100_000 + n), random.Random(n)
    spec = generator.valid(spec_schema(), draw.choice([0.1, 0.35, 0.8]))
    crowd.place(spec)
    name = f"valid-{n}"
    refused = await crowd.make(name, spec)
    if refused:
        assert "spec." in refused or "spec:" in refused, f"no field is named: {refused}"
        crowd.counts["valid by its keywords, refused by a rule"] += 1
        return
    crowd.counts["accepted"] += 1
    for _ in range(draw.choice([0, 0, 1, 2])):
        field, value = draw.choice([("suspend", True), ("suspend", False), ("cancel", True), ("priority", 3)])
        refused = await crowd.change(name, **{field: value})
        if refused:
            assert "cannot be changed" in refused or "cannot be undone" in refused, refused
        crowd.counts["changes"] += 1


async def test_specs_with_one_thing_wrong_are_refused_by_name(api: Api, field: Field, node: str) -> None:
    async with field.arena() as arena:
        crowd = Crowd(api, arena.view, arena.namespace, node)

        async def one(n: int) -> None:
            spec, what = Generator(SEED * 100_000 + n).broken(spec_schema())
            refused = await crowd.make(f"broken-{n}", spec)
            assert refused, f"accepted, although {what}: {spec}"
            name = what.partition(":")[0].rpartition(".")[2].partition("[")[0]
            assert name in refused, f"{what} is refused with {refused}"
            crowd.counts["refused"] += 1

        await _in_parallel(SPECS, one)
        NOTES.append(f"specs with one thing wrong: {dict(crowd.counts)}")


async def test_valid_specs_come_to_an_end(api: Api, field: Field, node: str) -> None:
    async with field.arena() as arena, arena.operator("generated", start_timeout=5, credentials_secret="x") as run:
        crowd = Crowd(api, arena.view, arena.namespace, node)
        kubelet = asyncio.create_task(crowd.play_kubelet())
        try:
            await _in_parallel(SPECS, lambda n: _live_through(crowd, n))
            await _all_rest(crowd, arena)
            await _rows_agree(crowd, arena, run.database)
        finally:
            kubelet.cancel()
            await asyncio.gather(kubelet, return_exceptions=True)
        phases = Counter(_phase_and_reason(job) for job in arena.view.jobs.values())
        NOTES.append(f"valid specs: {dict(crowd.counts)}, in the end {dict(phases)}")
    assert run.defects() == []


async def _all_rest(crowd: Crowd, arena: Arena) -> None:
    def restless() -> list[dict[str, Any]]:
        return [job for job in arena.view.jobs.values() if not _rests(job)]

    await eventually(lambda: not restless(), 90)
    assert not restless(), f"jobs that neither end nor say why: {restless()[:3]}"
    crowd.counts["at rest"] = len(arena.view.jobs)


async def _rows_agree(crowd: Crowd, arena: Arena, database: Any) -> None:
    """The newest row of each finished job says what its status says."""

    def wrong() -> list[str]:
        newest = {row["job_name"]: row["status"] for row in read_rows(database)}  # by attempt, so the last one counts
        ended = {name: job["status"]["phase"] for name, job in arena.view.jobs.items()}
        return [
            f"{name} is {phase}, its row {newest.get(name)}"
            for name, phase in ended.items()
            if phase in TERMINAL and newest.get(name) != phase.lower()
        ]

    await eventually(lambda: not wrong(), 15)
    assert not wrong(), "\n".join(wrong()[:10])


def _phase_and_reason(job: dict[str, Any]) -> str:
    status = job.get("status", {})
    return f"{status.get('phase')} {status.get('reason')}" if status.get("phase") != "Completed" else "Completed"
