"""All queues: which ClaudeCodeQueues are drained, who tells them of jobs, and what their status says."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from redis.asyncio import RedisCluster

from claudejobs.api.base import API_VERSION
from claudejobs.api.queue import QUEUE_KIND, SOURCE_LABEL, QueueSpec, QueueStatus
from claudejobs.kube.client import JSON_PATCH, ApiError, KubeClient, queues_path
from claudejobs.kube.controller import Controller
from claudejobs.kube.notices import post_event
from claudejobs.reconcile import kueue
from claudejobs.reconcile.views import JobView, Key, LiveReport, is_newer
from claudejobs.settings import Settings

from . import state
from .connection import Client, connect
from .consumer import Consumer
from .resources import QueueView, Resources
from .turns import Turns

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often the queues are looked at; their resources are looked at at once when they change."""

_ONE_SLOT = re.compile(r"^[^{]*\{[^}]+\}")
"""Names of queues whose keys are all in one slot of a Redis Cluster."""


@dataclass
class _Queue:
    """What is known of the ClaudeCodeQueues of one name: what is wanted, what was written, and who drains it.

    Attributes:
        view: the resource; ``None`` when there is none now.
        version: the newest resource version that was seen, a deletion's included.
        consumer: it may still be that of a resource of this name that is gone.
    """

    view: QueueView | None = None
    version: str = ""
    status: QueueStatus = field(default_factory=QueueStatus)
    consumer: Consumer | None = None
    problem: tuple[str, str] | None = None
    told_away: bool = False


class Intake:
    """Drains all ClaudeCodeQueues. Listens to the controller. For one event loop."""

    def __init__(self, client: KubeClient, controller: Controller, settings: Settings) -> None:
        self._client = client
        self._controller = controller
        self._settings = settings
        self._resources = Resources(client, controller)
        self._turns = Turns(controller.room)
        self._queues: dict[Key, _Queue] = {}
        self._redis: Client | None = None
        self._listening: Client | None = None
        self._look_now = asyncio.Event()
        self._listed_at: float | None = None  # time.monotonic
        self._task: asyncio.Task[None] | None = None
        controller.listener = self

    def start(self) -> None:
        """Start; the controller has listed all jobs."""
        url = self._settings.redis
        if url:
            self._redis, self._listening = connect(url), connect(url, blocking=True)
        self._task = asyncio.create_task(self._run(), name="intake")

    async def stop(self, timeout: float) -> None:
        """Stop fetching; what is held stays locked for the next process.

        Args:
            timeout: seconds that what is under way may take to end.
        """
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        consumers = [queue.consumer for queue in self._queues.values() if queue.consumer]
        await asyncio.gather(*(consumer.stop(timeout) for consumer in consumers))
        for client in (self._redis, self._listening):
            if client:
                await client.aclose()

    def on_queue(self, event: str | None, obj: dict[str, Any]) -> None:
        """An event of a ClaudeCodeQueue."""
        self._take_in(obj, event == "DELETED")
        self._look_now.set()

    def health(self) -> dict[str, Any]:
        """Whether Redis answers for each queue that is drained."""
        drained = {f"{ns}/{name}": queue.consumer for (ns, name), queue in self._queues.items() if queue.consumer}
        away = sorted(name for name, consumer in drained.items() if not consumer.connected)
        return {"state": "degraded" if away else "ok", "queues": len(drained), "away": away}

    def readings(self) -> dict[Key, tuple[bool, QueueStatus]]:
        """Each queue as it is now: whether it is drained, and what Redis says of it."""
        now = datetime.now(UTC)
        return {
            key: (queue.consumer is not None and queue.problem is None, _status_of(queue, queue.view, now))
            for key, queue in self._queues.items()
            if queue.view
        }

    # What the controller tells: it goes to the queue that the job is of.

    def job_changed(self, job: JobView, live: LiveReport | None) -> None:
        """A job was looked at."""
        if consumer := self._consumer_of(job):
            consumer.job_changed(job, live)
        if job.status.phase.terminal:
            self._turns.room_made()

    def job_gone(self, job: JobView) -> None:
        """A job was deleted."""
        if consumer := self._consumer_of(job):
            consumer.job_gone(job)
        self._turns.room_made()

    def job_said(self, key: Key, text: str) -> None:
        """The agent did or printed something."""
        job = self._controller.job(key)
        consumer = self._consumer_of(job) if job else None
        if consumer and job and job.queue_job:
            consumer.job_said(job.queue_job, text)

    def waits(self, job: JobView) -> bool:
        """Whether a producer does not know yet how the job ended."""
        if job.queue_job is None or self._redis is None:
            return False
        if consumer := self._consumer_of(job):
            return consumer.waits(job)
        # Nobody drains its queue yet, as after a start, or just now, as when the queue's resource is made anew.
        views = [queue.view for queue in self._queues.values() if queue.view]
        return self._listed_at is None or any(_is_of(job, view) for view in views)

    def _consumer_of(self, job: JobView) -> Consumer | None:
        if job.queue_job is None:
            return None
        consumers = (queue.consumer for queue in self._queues.values() if queue.consumer)
        return next((consumer for consumer in consumers if _is_of(job, consumer.view)), None)

    # The queues.

    async def _run(self) -> None:
        while True:
            self._look_now.clear()
            try:
                if self._listed_at is None or time.monotonic() - self._listed_at > self._settings.resync_seconds:
                    await self._list()
            except ApiError as error:
                logger.warning("the queues are listed again: %s", error)
            for key in list(self._queues):
                await self._try_to_look_at(key)
            with suppress(TimeoutError):  # not wait_for: see the consumer
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look_now.wait()

    async def _list(self) -> None:
        """List the queues: also what the watch missed of them, deletions included."""
        namespaces: list[str | None] = list(self._settings.watch_namespaces) or [None]
        before = {key: queue.view for key, queue in self._queues.items()}
        for namespace in namespaces:
            async for obj in self._client.list(queues_path(namespace)):
                before.pop(self._take_in(obj), None)
        for key, view in before.items():
            if self._queues[key].view is view:  # else it was made while the list was
                self._queues[key].view = None
        self._listed_at = time.monotonic()

    def _take_in(self, obj: dict[str, Any], deleted: bool = False) -> Key:
        """Remember a resource; its key. What is older than what is known, as a list may be, changes nothing."""
        meta = obj["metadata"]
        key = (meta["namespace"], meta["name"])
        known = self._queues.setdefault(key, _Queue())
        if is_newer(meta["resourceVersion"], known.version):
            known.version = meta["resourceVersion"]
            self._put(known, key, obj, deleted or "deletionTimestamp" in meta)
        return key

    @staticmethod
    def _put(known: _Queue, key: Key, obj: dict[str, Any], gone: bool) -> None:
        meta = obj["metadata"]
        if gone:
            known.view = None
            return
        try:
            known.status = QueueStatus.model_validate(obj.get("status") or {})
            spec = QueueSpec.model_validate(obj["spec"])
        except ValidationError as error:
            logger.error("queue %s/%s is left as it was: %s", *key, error)
            if known.view and known.view.uid != meta["uid"]:
                known.view = None
            return
        known.view = QueueView(
            namespace=key[0],
            name=key[1],
            uid=meta["uid"],
            generation=meta.get("generation", 1),
            created=meta["creationTimestamp"],
            spec=spec,
            labels=kueue.labels_of(meta.get("labels") or {}),
        )

    async def _try_to_look_at(self, key: Key) -> None:
        """Look at a queue; what goes wrong with one keeps no other back."""
        try:
            await self._look_at(key)
        except ApiError as error:
            logger.warning("queue %s/%s is looked at again: %s", *key, error)
        except Exception:
            logger.exception("queue %s/%s: a defect", *key)

    async def _look_at(self, key: Key) -> None:
        """Start, change or stop what drains a queue, and write its status."""
        queue = self._queues[key]
        if queue.consumer and not _drains(queue.consumer, queue.view):
            await self._end(queue, queue.consumer)
        view, consumer = queue.view, queue.consumer  # only now: it may have been made anew meanwhile
        if view is None:
            if consumer is None:
                del self._queues[key]
            return
        problem = await self._problem_of(view)
        if queue.view is not view:
            return  # it has changed meanwhile, and is looked at again
        queue.problem = problem
        if problem is None and consumer is None:
            assert self._redis is not None
            assert self._listening is not None
            queue.consumer = Consumer(
                view, self._resources, self._redis, self._listening, self._turns, self._look_now.set
            )
            queue.consumer.start()
            logger.info("queue %s is drained into namespace %s", view.qualified, view.target)
        elif consumer and _drains(consumer, view):
            consumer.draining = problem is not None
            if consumer.view != view:
                consumer.update(view)
        await self._write_status(key, queue, view)

    async def _end(self, queue: _Queue, consumer: Consumer) -> None:
        """End a consumer whose resource is gone: with what it has fetched, unless another resource takes that over."""
        consumer.draining = True
        if consumer.idle or self._has_successor(consumer.view):
            await consumer.stop(5.0)
            queue.consumer = None
            self._look_now.set()  # who waits for that may be looked at already

    def _has_successor(self, old: QueueView) -> bool:
        """Whether another resource takes over what an old one has fetched: its jobs must be where the new one looks."""
        views = [queue.view for queue in self._queues.values() if queue.view and queue.view.uid != old.uid]
        return any((view.qualified, view.target) == (old.qualified, old.target) for view in views)

    async def _problem_of(self, view: QueueView) -> tuple[str, str] | None:
        """Why a queue cannot be drained: a reason in one word, and a message."""
        if self._redis is None:
            return "RedisNotConfigured", "the operator has no Redis: set REDIS_URL, or REDIS_HOST"
        watched = self._settings.watch_namespaces
        if watched and view.target not in watched:
            return "NamespaceNotWatched", f"jobs of namespace {view.target} are not run here (WATCH_NAMESPACES)"
        if isinstance(self._redis, RedisCluster) and not _ONE_SLOT.search(view.qualified):
            text = (
                "on a Redis Cluster the keys of a queue must share a slot: producers and spec.prefix need a prefix in "
                f"braces, such as {{bull}}, not {view.spec.prefix}"
            )
            return "PrefixWithoutBraces", text
        others = [
            other.view
            for other in self._queues.values()
            if other.view and other.view.qualified == view.qualified and other.view.uid != view.uid
        ]
        # Of those made in the same second, who drains goes on.
        first = min([view, *others], key=lambda one: (one.created, not self._is_drained(one), one.uid))
        if first is not view:
            return "Conflict", f"ClaudeCodeQueue {first.namespace}/{first.name} drains {view.qualified} already"
        ending = [queue.consumer for queue in self._queues.values() if queue.consumer]
        if any(one.draining and one.view.qualified == view.qualified and one.view.uid != view.uid for one in ending):
            return "Draining", f"jobs of {view.qualified} that a deleted ClaudeCodeQueue has fetched still run"
        former = self._queues[view.key].consumer
        if former and not _drains(former, view):
            text = f"jobs of {former.view.qualified} that a deleted ClaudeCodeQueue of this name has fetched still run"
            return "Draining", text
        if view.target != view.namespace:
            return await self._target_problem(view)
        return None

    def _is_drained(self, view: QueueView) -> bool:
        """Whether a resource drains its queue, or did before the operator's start."""
        queue = self._queues[view.key]
        return _drains(queue.consumer, view) if queue.consumer else state.is_accepted(queue.status)

    async def _target_problem(self, view: QueueView) -> tuple[str, str] | None:
        try:
            target = await self._client.get(f"/api/v1/namespaces/{view.target}")
        except ApiError as error:
            return "NamespaceUnknown", f"whether namespace {view.target} takes jobs cannot be read: {error.message}"
        labels = target["metadata"].get("labels", {}) if target else {}
        if labels.get(SOURCE_LABEL) != view.namespace:
            text = f"namespace {view.target} does not take jobs from here; label it {SOURCE_LABEL}={view.namespace}"
            return "NamespaceForbids", text
        return None

    async def _write_status(self, key: Key, queue: _Queue, view: QueueView) -> None:
        status = _status_of(queue, view, datetime.now(UTC))
        if queue.consumer and _drains(queue.consumer, view):
            await self._tell_of_redis(queue, view, queue.consumer)
        if status == queue.status:
            return
        value = status.model_dump(by_alias=True, mode="json", exclude_none=True)
        body = [
            {"op": "replace", "path": "/metadata/uid", "value": view.uid},  # 409 when it is another one
            {"op": "add", "path": "/status", "value": value},
        ]
        try:
            await self._client.request("PATCH", queues_path(*key, "status"), body, content_type=JSON_PATCH)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return
        queue.status = status

    async def _tell_of_redis(self, queue: _Queue, view: QueueView, consumer: Consumer) -> None:
        """Post an Event when Redis goes, and when it is back."""
        away = not consumer.connected and consumer.last_error is not None
        if away == queue.told_away:
            return
        queue.told_away = away
        about = {
            "apiVersion": API_VERSION,
            "kind": QUEUE_KIND,
            "namespace": view.namespace,
            "name": view.name,
            "uid": view.uid,
        }
        if away:
            text = (
                f"{consumer.last_error[0] if consumer.last_error else ''}; running jobs go on, no new ones are fetched"
            )
            await post_event(self._client, about, "Warning", "RedisAway", text)
        else:
            await post_event(self._client, about, "Normal", "RedisBack", "Redis answers again")


def _drains(consumer: Consumer, view: QueueView | None) -> bool:
    """Whether a consumer is that of this very resource."""
    return view is not None and consumer.view.uid == view.uid


def _is_of(job: JobView, view: QueueView) -> bool:
    return job.queue_job is not None and (job.queue_job.queue, job.namespace) == (view.qualified, view.target)


def _status_of(queue: _Queue, view: QueueView, now: datetime) -> QueueStatus:
    """The status that a queue should have now."""
    consumer = queue.consumer
    status = state.accepted(queue.status, queue.problem, view.spec.suspend, view.generation, now)
    if consumer is None or not _drains(consumer, view):
        return status
    status = state.connected(status, consumer.snapshot, consumer.connected, consumer.last_error, view.generation, now)
    if consumer.snapshot:  # it has swept
        status = state.exclusive(status, consumer.rival, view.generation, now)
    return status.model_copy(update={"held": len(consumer.held), "redis_run_id": consumer.run_id})
