"""Many queue jobs drained onto nodes that kwok plays, while the operator and Redis are killed again and again."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import localcluster
from claudejobs.api.base import API_VERSION
from claudejobs.api.queue import DEAD_LETTER_SUFFIX, QUEUE_KIND
from claudejobs.api.queue_job import QUEUE_JOB_ANNOTATION
from localcluster import Cluster

from .kube import Namespace, unique
from .kwok import attempt_stages
from .node import NodeError, NodeProcess
from .operator import OperatorProcess
from .redis import RedisServer

BATCH = 100
RETRIES = 20
AWAY_SECONDS = 2.0
"""Redis stays away up to this long."""


@dataclass(frozen=True)
class QueuedJob:
    """One job of the producer's, and how it must end.

    Attributes:
        reason: how its failed reason begins; ``None``: it completes with its command as answer.
        resources: how many resources it may have.
        attempts: pods that it has when it has a resource; ``None``: what comes first decides.
    """

    id: str
    data: dict[str, Any]
    opts: dict[str, Any]
    reason: str | None = None
    resources: tuple[int, ...] = (1,)
    attempts: int | None = 1


def make_jobs(count: int) -> list[QueuedJob]:
    """A mixture: most complete, a quarter has a priority, some fail, are wrong, need two attempts or are cancelled."""
    return [_make_job(number) for number in range(count)]


def _make_job(number: int) -> QueuedJob:
    job_id = f"job-{number}"
    opts: dict[str, Any] = {"jobId": job_id, "attempts": 2, "backoff": {"type": "fixed", "delay": 1000}}
    if number % 4 == 0:
        opts["priority"] = 1 + number % 5

    def job(command: str, **how: Any) -> QueuedJob:
        data = {"taskId": f"task-{number}", "userId": f"user-{number % 7}", "command": f"{command} {number}"}
        return QueuedJob(job_id, data, opts, **how)

    match number % 50:
        case 3 | 23 | 43:
            return job("fail billing", reason="billing: as the prompt says")
        case 7 | 27:
            return job("again", attempts=2)
        case 11:
            wrong = {"taskId": f"task-{number}", "userId": "nobody"}
            return QueuedJob(job_id, wrong, opts, reason="invalid_request: data.command", resources=(0,))
        case 19:
            return job("hang", reason="cancelled", resources=(0, 1), attempts=None)
    return job("complete")


@dataclass
class Drain:
    """A queue that is drained, and what is done to it. Made by ``drained``."""

    namespace: Namespace
    server: RedisServer
    operator: OperatorProcess
    producer: NodeProcess
    jobs: list[QueuedJob]
    name: str
    chance: random.Random
    seen: dict[str, Path]
    kills: int = 0
    restarts: int = 0
    seconds: float = 0.0

    def run(self, kills: int, restarts: int, timeout: float) -> None:
        """Add all jobs, kill the operator and Redis as often as is said while they are drained, and await their end.

        What is killed comes back at once or a moment later; one kill in four of the operator falls into a time
        without Redis.
        """
        began = time.monotonic()
        for due in self._schedule(kills, restarts):
            at, act = due
            while (progress := self._progress()) < at:
                assert time.monotonic() - began < timeout, (
                    f"not within {timeout} s: {progress} of {at}; {self._state()}"
                )
                time.sleep(0.05)
            act()
        self.seconds = time.monotonic() - began

    def _schedule(self, kills: int, restarts: int) -> Iterator[tuple[float, Callable[[], None]]]:
        """What is done at which progress; half of a job's progress is that it was fetched, half that it ended."""
        total = len(self.jobs)
        hanging = [job for job in self.jobs if job.data.get("command", "").startswith("hang")]
        batches = [self.jobs[start : start + BATCH] for start in range(0, total, BATCH)]
        steps: list[tuple[float, Callable[[], None]]] = []
        # The first half is there at once, the rest comes while it is drained.
        for number, batch in enumerate(batches):
            steps.append((max(0, number - len(batches) // 2) * BATCH, lambda batch=batch: self._add(batch)))  # type: ignore[misc]
        for job in hanging:
            steps.append((self.chance.uniform(0.6, 0.8) * total, lambda job=job: self._cancel(job)))  # type: ignore[misc]
        # By the last hundredth nothing is left to interrupt.
        for number in range(kills):
            steps.append((0.9 * total * (number + self.chance.random()) / kills, self._kill))
        for number in range(restarts):
            steps.append((0.9 * total * (number + self.chance.random()) / restarts, self._restart_redis))
        steps.append((total, lambda: None))
        return iter(sorted(steps, key=lambda step: step[0]))

    def _add(self, batch: list[QueuedJob]) -> None:
        jobs = [{"name": "run", "data": job.data, "opts": job.opts} for job in batch]
        self._insist(lambda: self.producer.command("addBulk", queue=self.name, jobs=jobs))

    def _cancel(self, job: QueuedJob) -> None:
        self._insist(lambda: self.producer.command("publishCancel", queue=self.name, jobId=job.id))

    def _insist(self, call: Callable[[], object]) -> None:
        """As a producer does whose connection was lost: again, under the same ids."""
        for _ in range(RETRIES):
            try:
                call()
            except NodeError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError(f"the producer's call failed {RETRIES} times")

    def _kill(self) -> None:
        time.sleep(self.chance.uniform(0, 0.2))
        self.operator.kill()
        self.kills += 1
        self.operator.start()

    def _restart_redis(self) -> None:
        self.server.kill()
        self.restarts += 1
        time.sleep(self.chance.uniform(0, AWAY_SECONDS))
        self.server.start()

    def _progress(self) -> float:
        counts = self._counts()
        ended = counts["completed"] + counts["failed"]
        return ended + counts["active"] / 2

    def _counts(self) -> dict[str, int]:
        with self.server.client() as client:
            at = f"bull:{self.name}"
            pipe = client.pipeline(transaction=False)
            pipe.zcard(f"{at}:completed").zcard(f"{at}:failed").llen(f"{at}:active").llen(f"{at}:wait")
            pipe.zcard(f"{at}:prioritized")
            names = ("completed", "failed", "active", "wait", "prioritized")
            return dict(zip(names, pipe.execute(), strict=True))

    def _state(self) -> str:
        phases = Counter(job.get("status", {}).get("phase", "new") for job in self.resources())
        return f"{self._counts()}, resources {dict(phases)}, {self.kills} kills, {self.restarts} restarts"

    def resources(self) -> list[dict[str, Any]]:
        """All ClaudeCodeJobs of the namespace."""
        items: list[dict[str, Any]] = json.loads(self.namespace.kubectl("get", "ccj", "-o", "json"))["items"]
        return items

    def ends(self) -> dict[str, dict[str, str]]:
        """The hash of each job as Redis has it, and with ``in`` the set that it is in."""
        with self.server.client() as client:
            at = f"bull:{self.name}"
            where = dict.fromkeys(client.zrange(f"{at}:completed", 0, -1), "completed")
            where |= dict.fromkeys(client.zrange(f"{at}:failed", 0, -1), "failed")
            pipe = client.pipeline(transaction=False)
            for job in self.jobs:
                pipe.hgetall(f"{at}:{job.id}")
            hashes = pipe.execute()
        return {job.id: {**found, "in": where.get(job.id, "")} for job, found in zip(self.jobs, hashes, strict=True)}

    def dead_letters(self) -> list[str]:
        """Ids of the queue jobs whose data is in the dead-letter queue."""
        at = f"bull:{self.name}{DEAD_LETTER_SUFFIX}"
        with self.server.client() as client:
            letters = client.lrange(f"{at}:wait", 0, -1)
            return sorted(json.loads(client.hget(f"{at}:{letter}", "ccj.origin") or "{}")["id"] for letter in letters)

    def made(self, kind: str) -> Counter[str]:
        """How often each object of a kind was made in the namespace, those that are gone again included."""
        # The audit log cannot tell: of a request that was cut off by a kill it does not say whether it took effect.
        seen = {tuple(line.split()) for line in self.seen[kind].read_text().splitlines()}
        return Counter(name for name, _ in seen)


@contextmanager
def drained(cluster: Cluster, namespace: Namespace, folder: Path, jobs: list[QueuedJob], slots: int) -> Iterator[Drain]:
    """A Redis, an operator, a producer and nodes for them; the queue is there, and empty."""
    name = unique("tasks")
    (folder / "redis").mkdir()
    with (
        localcluster.kwok(cluster, attempt_stages(), nodes=4) as nodes,
        _watched(namespace, folder) as seen,
        RedisServer(folder / "redis") as server,
        NodeProcess("producer.js", server) as producer,
    ):
        operator = OperatorProcess(
            namespace,
            folder / "operator.log",
            f"sqlite:///{folder}/state.db",
            redis_url=server.url(),
            max_concurrent_jobs=slots,
            resync_seconds=10,
        )
        template = {"podTemplate": nodes.placement}
        queue = {
            "apiVersion": API_VERSION,
            "kind": QUEUE_KIND,
            "metadata": {"name": name, "namespace": namespace.name},
            "spec": {"queueName": name, "lockSeconds": 60, "template": template},
        }
        namespace.apply(queue)
        try:
            yield Drain(namespace, server, operator.start(), producer, jobs, name, random.Random(7), seen)
        finally:
            if operator.process and operator.process.poll() is None:
                operator.kill()
            namespace.kubectl("delete", "ccj", "--all", "--wait=false")


class _Watch:
    """Has kubectl write down name and UID of each object of a kind that there ever is."""

    def __init__(self, namespace: Namespace, kind: str, file: Path) -> None:
        self._namespace, self._kind, self._file = namespace, kind, file
        self._stopped = threading.Event()
        self._kubectl: subprocess.Popen[bytes] | None = None
        file.touch()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        columns = "custom-columns=NAME:.metadata.name,UID:.metadata.uid"
        while not self._stopped.is_set():
            with self._file.open("ab") as out:
                self._kubectl = self._namespace.start(
                    "get", self._kind, "--watch", "--no-headers", "-o", columns, stdout=out
                )
            self._kubectl.wait()  # the API server ends the watch when the kind's definition is applied again
            self._stopped.wait(0.1)

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            if self._kubectl:
                self._kubectl.terminate()
            self._thread.join(0.2)


@contextmanager
def _watched(namespace: Namespace, folder: Path) -> Iterator[dict[str, Path]]:
    """The files in which the watches of jobs and pods write."""
    files = {kind: folder / kind for kind in ("ccj", "pods")}
    watches = [_Watch(namespace, kind, file) for kind, file in files.items()]
    try:
        yield files
    finally:
        for watch in watches:
            watch.stop()


def check(drain: Drain) -> str:
    """Every queue job had what it must have, and nothing twice; the figures in one line."""
    made, pods = drain.made("ccj"), drain.made("pods")
    of_job: Counter[str] = Counter()
    names: dict[str, str] = {}
    for resource in drain.resources():
        job_id = json.loads(resource["metadata"]["annotations"][QUEUE_JOB_ANNOTATION])["id"]
        of_job[job_id] += 1
        names[job_id] = resource["metadata"]["name"]
    lost = [job.id for job in drain.jobs if of_job[job.id] < min(job.resources)]
    doubled = [job.id for job in drain.jobs if of_job[job.id] > max(job.resources)]
    twice = [name for name, times in (made + pods).items() if times > 1]
    figures = (
        f"{len(drain.jobs)} queue jobs: {sum(of_job.values())} resources, {sum(pods.values())} pods, "
        f"{len(lost)} lost, {len(doubled) + len(twice)} doubled; {drain.kills} kills of the operator, "
        f"{drain.restarts} of Redis; {drain.seconds:.0f} s"
    )
    assert (lost, doubled, twice) == ([], [], []), figures
    assert made == Counter(names.values()), f"resources were made that are gone again; {figures}"
    _check_ends(drain, names, pods)
    return figures


def _check_ends(drain: Drain, names: dict[str, str], pods: Counter[str]) -> None:
    wrong = []
    ends = drain.ends()
    for job in drain.jobs:
        end = ends[job.id]
        if job.reason is None:
            value = json.loads(end.get("returnvalue", "null")) or {}
            right = end["in"] == "completed" and value.get("text") == job.data["command"]
        else:
            right = end["in"] == "failed" and end.get("failedReason", "").startswith(job.reason)
        name = names.get(job.id)
        count = len([pod for pod in pods if name and pod.startswith(f"{name}-")])
        if not right or (name and job.attempts is not None and count != job.attempts):
            wrong.append((job.id, job.reason, count, end))
    assert not wrong, (len(wrong), wrong[:3])
    buried = sorted(job.id for job in drain.jobs if job.reason and not job.reason.startswith("cancelled"))
    assert drain.dead_letters() == buried
    text = drain.operator.log.read_text()
    assert "a defect" not in text, text[-5000:]
    assert "Traceback" not in text, text[-5000:]
