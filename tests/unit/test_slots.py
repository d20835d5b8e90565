"""That a slot is one job's for as long as its pod is being made, whatever is heard of the job meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio
from aiohttp import web
from kubernetes.aio.client import Configuration

from claudejobs.kube.client import KubeClient
from claudejobs.kube.controller import Controller
from claudejobs.metrics import Metrics
from claudejobs.reconcile.admission import Room
from claudejobs.store import Store

from .model.objects import NOW, Json, job_object, make_settings, stamp

JOBS = {name: job_object(name=name, uid=f"uid-{name}") for name in ("first", "second")}


class SlowApi:
    """An API server that has the two jobs, and answers who makes a pod only when it is told to.

    Attributes:
        asked: names of the pods that were to be made.
        answer: set when the answers may come.
    """

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.answer = asyncio.Event()

    async def make_pod(self, request: web.Request) -> web.Response:
        pod: Json = await request.json()
        self.asked.put_nowait(pod["metadata"]["name"])
        await self.answer.wait()
        given = {"uid": "uid", "resourceVersion": "101", "creationTimestamp": stamp(NOW)}
        return web.json_response(pod | {"metadata": pod["metadata"] | given})

    async def read_job(self, request: web.Request) -> web.Response:
        return web.json_response(JOBS[request.match_info["name"]])

    async def write_status(self, request: web.Request) -> web.Response:
        (status,) = [step["value"] for step in await request.json() if step["path"] == "/status"]
        job = JOBS[request.match_info["name"]]
        return web.json_response(job | {"status": status, "metadata": job["metadata"] | {"resourceVersion": "102"}})


@pytest_asyncio.fixture
async def api() -> AsyncIterator[tuple[SlowApi, str]]:
    api, app = SlowApi(), web.Application()
    jobs = "/apis/claudecode.dev/v1alpha1/namespaces/team/claudecodejobs/{name}"
    app.add_routes(
        [
            web.post("/api/v1/namespaces/team/pods", api.make_pod),
            web.get(jobs, api.read_job),
            web.patch(f"{jobs}/status", api.write_status),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield api, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_slot_is_not_given_away_while_the_pod_is_made(api: tuple[SlowApi, str], tmp_path: Path) -> None:
    server, host = api
    configuration = Configuration()
    configuration.host = host
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/state.db", max_concurrent_jobs=1)
    async with aiohttp.ClientSession() as session:
        client = KubeClient(configuration, session)
        controller = Controller(client, Store(settings.database_url.get_secret_value()), settings, Metrics())
        for job in JOBS.values():
            controller.take_in(job)
        making = asyncio.create_task(controller._reconcile(("team", "first")))
        assert await asyncio.wait_for(server.asked.get(), 20) == "first-1"
        controller.take_in(JOBS["first"])  # the watch's or a list's news come when they come
        assert controller.room("team") == Room(free=0, waiting=1)
        server.answer.set()
        await controller._reconcile(("team", "second"))
        await making
        assert server.asked.empty()
        assert controller.room("team") == Room(free=0, waiting=1)
