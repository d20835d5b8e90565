"""Plays a few queue jobs to their ends with one fault at a command or a write, and says how they came out."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bullmq import Job, Queue
from redis.asyncio import Redis

from claudejobs.api.base import API_VERSION
from claudejobs.api.queue import DEAD_LETTER_SUFFIX, QUEUE_KIND
from claudejobs.kube.client import queues_path
from tests.support.kube import unique
from tests.support.pods import PlayedPods, identity_of

from .api import View
from .arena import Arena
from .faults import Fault
from .kubelet import Kubelet, placement
from .redis_proxy import RedisFault, RedisProxy

HOUR = 3_600_000
TIMEOUT = 120.0
"""Seconds that a run may take; it takes some ten, but on a machine with much to do."""

STATES = ("completed", "failed", "delayed")


@dataclass(frozen=True)
class QueueRun:
    """One run.

    Attributes:
        outcome: what became of each queue job, and of what came of them; without times and names.
        commands: the operator's commands, by name.
        writes: the operator's writes.
        trouble: what did not go as it should; empty when all is well.
        hit: whether the fault struck.
    """

    outcome: dict[str, Any]
    commands: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    trouble: str = ""
    hit: bool = False


class QueueStage:
    """One queue in one namespace: its producer, and what is to be seen of it."""

    def __init__(self, client: Redis, view: View, name: str, timeout: float) -> None:
        self.client, self.view, self.name = client, view, name
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._queue: Any = Queue(name, {"connection": client, "skipVersionCheck": True})

    def key(self, name: str) -> str:
        return f"bull:{self.name}:{name}"

    async def play(self) -> None:
        """What the producer does. One job completes, one fails and is retried by hand, one has wrong data, one is
        cancelled while it runs, and one is a scheduler's, whose next one is due in an hour."""
        for job_id, command in {"good": "hello", "bad": "fail", "stop": "hold"}.items():
            await self._add(job_id, command=command)
        await self._add("wrong")
        await self._queue.upsertJobScheduler("tick", {"every": HOUR}, "run", _data(command="hello"))
        await self.until(lambda outcome: "Running" in outcome["resources"].get("stop", []))
        await self.client.xadd(self.key("events"), {"event": "cancel", "jobId": "stop"})
        await self.until(lambda outcome: outcome["failed"].get("bad"))
        job = await Job.fromId(self._queue, "bad")
        assert job is not None
        await job.retry("failed")

    async def _add(self, job_id: str, **data: Any) -> None:
        await self._queue.add("run", _data(**data), {"jobId": job_id})

    async def until(self, probe: Callable[[dict[str, Any]], object]) -> None:
        """Wait until the outcome is as the probe wants it.

        Raises:
            TimeoutError: the run takes too long.
        """
        # The clock is looked at, because the library may swallow the cancellation by which asyncio.timeout() works.
        while not probe(await self.outcome()):
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"not within {self._timeout} s")
            await asyncio.sleep(0.05)

    async def outcome(self) -> dict[str, Any]:
        """What there is, without times and names."""
        found: dict[str, Any] = {}
        for state in STATES:
            found[state] = {}
            for job_id in await self.client.zrange(self.key(state), 0, -1):
                found[state][_short(job_id)] = await self._end(job_id)
        lists = [await self.client.lrange(self.key(name), 0, -1) for name in ("wait", "active")]
        found["open"] = sorted(_short(job_id) for ids in lists for job_id in ids)
        found["locks"] = sum([1 async for _ in self.client.scan_iter(self.key("*:lock"), count=1000)])
        found["iterations"] = await self.client.hget(self.key("repeat:tick"), "ic")
        letters = f"bull:{self.name}{DEAD_LETTER_SUFFIX}"
        origins = [
            json.loads(await self.client.hget(f"{letters}:{letter}", "ccj.origin") or "{}")
            for letter in await self.client.lrange(f"{letters}:wait", 0, -1)
        ]
        found["letters"] = sorted((str(origin.get("id")), str(origin.get("reason"))) for origin in origins)
        found["resources"], found["pods"] = self._cluster()
        return found

    async def _end(self, job_id: str) -> dict[str, Any]:
        raw = await self.client.hgetall(self.key(job_id))
        value = json.loads(raw.get("returnvalue") or "{}")
        kept = {name: raw.get(name) for name in ("failedReason", "atm", "ccj.deliveries", "ccj.uid", "ccj.cancel")}
        return kept | {"answer": [value.get(name) for name in ("status", "text", "attempts", "taskId")]}

    def _cluster(self) -> tuple[dict[str, list[str]], dict[str, int]]:
        phases: dict[str, list[str]] = {}
        for job in self.view.jobs.values():
            job_id = _short(identity_of(job)["id"])
            phases[job_id] = sorted([*phases.get(job_id, []), job.get("status", {}).get("phase", "")])
        owners = {name: _short(identity_of(job)["id"]) for name, job in self.view.jobs.items()}
        pods: Counter[str] = Counter()
        for (owner, _), uids in self.view.attempts.items():
            pods[owners.get(owner, "nobody's")] += len(uids)
        return phases, dict(pods)


def _data(**more: Any) -> dict[str, Any]:
    return {"taskId": "task", "userId": "ada", **more}


def _short(job_id: str) -> str:
    """A scheduler's jobs are called by the times that they are due at."""
    return "tick" if job_id.startswith("repeat:tick:") else job_id


def at_end(outcome: dict[str, Any]) -> bool:
    """Whether nothing more is to be expected of a run without fault."""
    deliveries = outcome["failed"].get("bad", {}).get("ccj.deliveries")
    ended = len(outcome["completed"]) + len(outcome["failed"]) == 5
    resting = all(phase in ("Completed", "Failed", "Cancelled") for of in outcome["resources"].values() for phase in of)
    return ended and resting and deliveries == "2" and not outcome["open"]


async def play(
    arena: Arena,
    node: str,
    port: int,
    fault: RedisFault | Fault | None = None,
    expected: dict[str, Any] | None = None,
    bug: str | None = None,
    timeout: float = TIMEOUT,
) -> QueueRun:
    """Play the scenario to its end, or until the outcome is the expected one.

    Args:
        port: of the real Redis.
    """
    name = unique("tasks")
    of_redis = fault if isinstance(fault, RedisFault) else None
    of_api = fault if isinstance(fault, Fault) else None
    template = {"podTemplate": placement(node), "retry": {"maxAttempts": 1}}
    queue = {
        "apiVersion": API_VERSION,
        "kind": QUEUE_KIND,
        "metadata": {"name": name},
        "spec": {"queueName": name, "lockSeconds": 10, "template": template},
    }
    client = Redis(port=port, decode_responses=True, socket_timeout=timeout)
    proxy = RedisProxy(port, of_redis, arena.crash)
    stage, trouble = QueueStage(client, arena.view, name, timeout), []
    pods = PlayedPods(node, arena.api, arena.view, Kubelet(arena.api, arena.namespace), asyncio.get_running_loop())
    playing = asyncio.create_task(pods.play())
    try:
        async with proxy.listening() as url, arena.operator(name, of_api, bug, redis_url=url) as run:
            await arena.api.request("POST", queues_path(arena.namespace), queue)
            try:
                await stage.play()
                await stage.until(lambda outcome: at_end(outcome) if expected is None else outcome == expected)
            except TimeoutError as error:
                trouble.append(str(error))
            outcome = await stage.outcome()
            writes, hit = arena.writes, proxy.hit if of_redis else arena.hit
            await arena.api.request("DELETE", queues_path(arena.namespace))
            if expected is not None and outcome != expected:
                changed = [name for name in outcome if outcome[name] != expected[name]]
                trouble += [f"{name} is {outcome[name]}, not {expected[name]}" for name in changed]
            trouble += run.defects()
            if trouble:
                trouble.append(f"log: {run.log}")
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await client.aclose()
    return QueueRun(outcome, proxy.commands, len(writes), "\n  ".join(trouble), hit)
