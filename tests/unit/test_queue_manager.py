"""ClaudeCodeQueues that come, go and are made anew, seen by an intake that neither API server nor Redis answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from kubernetes.aio.client import Configuration

from claudejobs.api.base import API_VERSION
from claudejobs.api.queue import QUEUE_KIND
from claudejobs.api.queue_job import QUEUE_JOB_ANNOTATION, QueueJob
from claudejobs.intake.manager import Intake
from claudejobs.kube.client import KubeClient
from claudejobs.kube.controller import Controller
from claudejobs.metrics import Metrics
from claudejobs.store import Store

from .model.objects import Json, job_view, make_settings, stamp

NOBODY = "127.0.0.1:1"
KEY = ("team", "tasks")


def resource(uid: str, version: int, name: str = KEY[1], **spec: Any) -> Json:
    metadata = {
        "namespace": KEY[0],
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": stamp(datetime.now(UTC)),
    }
    return {"apiVersion": API_VERSION, "kind": QUEUE_KIND, "metadata": metadata, "spec": {"queueName": "tasks"} | spec}


@pytest_asyncio.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    configuration = Configuration()
    configuration.host = f"http://{NOBODY}"
    settings = make_settings(redis_url=f"redis://{NOBODY}", database_url=f"sqlite:///{tmp_path}/state.db")
    async with aiohttp.ClientSession() as session:
        client = KubeClient(configuration, session)
        controller = Controller(client, Store(settings.database_url.get_secret_value()), settings, Metrics())
        intake = Intake(client, controller, settings)
        intake.start()
        yield intake
        await intake.stop(1.0)


async def until(probe: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not probe():  # noqa: ASYNC110 - the intake has no event for it
            await asyncio.sleep(0.002)


def drained_by(intake: Intake) -> str | None:
    consumer = intake._queues[KEY].consumer if KEY in intake._queues else None
    return consumer.view.uid if consumer else None


async def test_a_queue_that_is_made_anew_at_any_moment_is_drained(intake: Intake) -> None:
    intake.on_queue("ADDED", resource("old", 1))
    await until(lambda: drained_by(intake) == "old")
    (old,) = (queue.consumer for queue in intake._queues.values())
    assert old is not None
    old._swept = True  # so that it is idle, and is ended at once
    for pauses in range(30):  # the new one comes at each of the moments at which the old one's end lets others in
        version = 10 * pauses
        intake.on_queue("DELETED", resource(drained_by(intake) or "", version + 2))
        for _ in range(pauses):
            await asyncio.sleep(0)
        intake.on_queue("ADDED", resource(f"new-{pauses}", version + 3))
        await until(lambda uid=f"new-{pauses}": drained_by(intake) == uid)
        consumer = intake._queues[KEY].consumer
        assert consumer is not None
        consumer._swept = True


async def test_news_of_the_old_one_that_come_late_change_nothing(intake: Intake) -> None:
    intake.on_queue("ADDED", resource("new", 7))
    await until(lambda: drained_by(intake) == "new")
    intake.on_queue("DELETED", resource("old", 6))
    intake.on_queue("MODIFIED", resource("old", 5))
    await until(lambda: not intake._look_now.is_set())
    assert drained_by(intake) == "new"
    assert KEY in intake.readings()


async def test_what_the_old_one_holds_is_waited_for_when_the_new_one_is_of_another_queue(intake: Intake) -> None:
    intake.on_queue("ADDED", resource("old", 1))
    await until(lambda: drained_by(intake) == "old")
    intake.on_queue("ADDED", resource("new", 2, queueName="others"))
    await until(lambda: intake._queues[KEY].problem)
    assert drained_by(intake) == "old"  # no sweep has told yet that it holds nothing
    _, status = intake.readings()[KEY]
    (accepted,) = status.conditions
    assert (accepted.status, accepted.reason) == ("False", "Draining")


async def test_what_was_fetched_since_the_last_sweep_is_waited_for(intake: Intake) -> None:
    intake.on_queue("ADDED", resource("old", 1))
    await until(lambda: drained_by(intake) == "old")
    consumer = intake._queues[KEY].consumer
    assert consumer is not None
    consumer._swept, consumer._turn.fetching = True, True
    intake.on_queue("DELETED", resource("old", 2))

    async def look() -> str | None:
        intake._look_now.set()
        await until(lambda: consumer.draining and not intake._look_now.is_set())
        await asyncio.sleep(0)
        return drained_by(intake)

    assert await look() == "old"
    consumer._turn.fetching = False
    consumer._begun.add(QueueJob("bull:tasks", "a", 1))
    assert await look() == "old"
    consumer._begun.clear()
    intake._look_now.set()
    await until(lambda: drained_by(intake) is None)


def accepted(intake: Intake, name: str) -> tuple[str, str] | None:
    """The condition that a queue should have."""
    reading = intake.readings().get((KEY[0], name))
    found = [one for one in reading[1].conditions if one.type == "Accepted"] if reading else []
    return (found[0].status, found[0].reason) if found else None


@pytest.mark.parametrize("uid", ["a", "z"])
async def test_of_two_of_one_second_the_one_that_drains_goes_on(intake: Intake, uid: str) -> None:
    first, second = resource("m", 1), resource(uid, 2, "second")
    second["metadata"]["creationTimestamp"] = first["metadata"]["creationTimestamp"]
    intake.on_queue("ADDED", first)
    await until(lambda: drained_by(intake) == "m")
    intake.on_queue("ADDED", second)
    await until(lambda: intake._queues[KEY[0], "second"].problem)
    assert accepted(intake, "second") == ("False", "Conflict")
    assert drained_by(intake) == "m"


@pytest.mark.parametrize("uid", ["a", "z"])
async def test_so_does_the_one_that_drained_before_the_start(intake: Intake, uid: str) -> None:
    first, second = resource("m", 1), resource(uid, 2, "second")
    second["metadata"]["creationTimestamp"] = first["metadata"]["creationTimestamp"]
    condition = {
        "type": "Accepted",
        "reason": "Accepted",
        "message": "",
        "lastTransitionTime": stamp(datetime.now(UTC)),
    }
    first["status"] = {"conditions": [condition | {"status": "True"}]}
    second["status"] = {"conditions": [condition | {"status": "False", "reason": "Conflict"}]}
    intake.on_queue("ADDED", second)
    intake.on_queue("ADDED", first)
    await until(lambda: drained_by(intake) == "m")
    assert accepted(intake, "second") == ("False", "Conflict")


async def test_a_finished_job_is_kept_until_its_queue_is_known(intake: Intake) -> None:
    identity = QueueJob("bull:tasks", "1", 5)
    annotations = {QUEUE_JOB_ANNOTATION: identity.annotation()}
    job = job_view(
        status={"phase": "Completed"}, namespace=KEY[0], name=identity.resource_name, annotations=annotations
    )
    other = job_view(status={"phase": "Completed"}, namespace=KEY[0])
    assert intake.waits(job)
    assert not intake.waits(other)
    intake.on_queue("ADDED", resource("new", 1))
    await until(lambda: drained_by(intake) == "new")
    assert intake.waits(job)
