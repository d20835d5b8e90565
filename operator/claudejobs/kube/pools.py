"""Keeps the pools of warm pods as large as they should be, and knows which pod a job could take."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from claudejobs.reconcile.pool import (
    LONGEST_REPLACE_SECONDS,
    PoolPlan,
    PoolView,
    WarmPod,
    build_warm_pod,
    choose,
    fingerprint,
    plan,
    replace_delay,
)
from claudejobs.reconcile.views import JobView, Key, is_newer
from claudejobs.settings import Settings

from .client import MERGE_PATCH, ApiError, KubeClient, pods_path, pools_path
from .workqueue import QueueClosed, WorkQueue

logger = logging.getLogger(__name__)

REFILL_SECONDS = 1.0
"""Pause before a pod that was taken is replaced: the start of another one would slow down the job's own first step."""


class Pools:
    """Holds the pools and their pods, and reconciles one pool at a time. For one event loop."""

    def __init__(self, client: KubeClient, settings: Settings, queue: WorkQueue[Key] | None = None) -> None:
        self._client = client
        self._settings = settings
        self._pools: dict[Key, PoolView] = {}
        self._pods: dict[str, WarmPod] = {}
        self._held: dict[Key, str] = {}
        self._losses: dict[Key, tuple[int, float]] = {}
        self._queue: WorkQueue[Key] = queue or WorkQueue()
        self._worker: asyncio.Task[None] | None = None
        self._giving = settings.warm_pools

    @property
    def pods(self) -> list[WarmPod]:
        """All pods that pools own, as last seen."""
        return list(self._pods.values())

    def start(self) -> None:
        """Begin to reconcile."""
        self._worker = asyncio.create_task(self._work(), name="pools")

    async def stop(self) -> None:
        """Stop."""
        self._queue.close()
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def on_pool(self, event: str | None, obj: dict[str, Any]) -> None:
        """An event of a pool."""
        new = PoolView.parse(obj)
        if event == "DELETED":
            self._gone(new.key)
            return
        old = self._pools.get(new.key)
        if old is None or old.uid != new.uid or is_newer(new.resource_version, old.resource_version):
            self._pools[new.key] = new
        self._queue.wake(new.key)

    def on_pod(self, event: str | None, obj: dict[str, Any]) -> None:
        """An event of any pod: those that a pool owns are kept, one that a job has taken is not any more."""
        meta = obj["metadata"]
        new, old = WarmPod.parse(obj), self._pods.get(meta["uid"])
        if old is not None and not is_newer(meta["resourceVersion"], old.resource_version):
            return
        if new is not None and event != "DELETED":
            self._pods[new.uid] = new
            self._queue.wake(new.pool)
        elif old is not None:
            self._left(old)

    def saw(self, namespace: str, name: str, obj: dict[str, Any] | None) -> None:
        """A pod of this name as it is now; ``None``: it is gone."""
        if obj is not None:
            self.on_pod(None, obj)
            return
        for pod in self.pods:
            if (pod.namespace, pod.name) == (namespace, name):
                self._left(pod)

    def _left(self, pod: WarmPod) -> None:
        """A pod is not its pool's any more."""
        del self._pods[pod.uid]
        self._queue.add_after(pod.pool, REFILL_SECONDS)

    async def resync(self, namespaces: list[str | None], gone: list[WarmPod]) -> None:
        """List the pools anew, drop pods that are gone, and look at every pool.

        Raises:
            ApiError: the listing failed.
        """
        for pod in gone:
            self._pods.pop(pod.uid, None)
        before, seen = set(self._pools), set()
        for namespace in namespaces if self._settings.warm_pools else ():
            async for obj in self._client.list(pools_path(namespace)):
                self.on_pool(None, obj)
                seen.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))
        for key in before - seen:
            self._gone(key)
        for key in self._pools:
            self._queue.wake(key)

    def offer(self, job: JobView) -> str | None:
        """Name of a pod that this job could take, and no other is about to."""
        if not self._giving or job.status.open_attempt or job.status.phase.terminal or job.invalid:
            return None
        if job.kueue_labels:
            return None  # Kueue says when the job's pod may start: one that runs already would pass it by
        here = [pod for pod in self._pods.values() if pod.namespace == job.namespace and pod.free]
        if not here:
            return None
        others = {name for key, name in self._held.items() if key != job.key and key[0] == job.namespace}
        pod = choose(here, fingerprint(job.spec, self._settings), others)
        return pod.name if pod else None

    def forbidden(self, error: ApiError) -> None:
        """The API server does not let pods be changed: offer none any more, until the process is started again."""
        self._giving = False
        logger.error("jobs start cold from now on, because no pod can be handed over: %s", error)

    def hold(self, job: Key, name: str | None) -> None:
        """Keep a pod for a job, until it is the job's, or until ``None`` is held."""
        if name is None:
            self._held.pop(job, None)
        else:
            self._held[job] = name

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            try:
                await self._reconcile(key)
                self._queue.succeeded(key)
            except ApiError as error:
                delay = self._queue.retry(key, error.retry_after or 0.0)
                logger.warning("pool %s/%s: %s; again in %.1f s", *key, error, delay)
            except Exception:
                delay = self._queue.retry(key)
                logger.exception("pool %s/%s: a defect; again in %.1f s", *key, delay)
            finally:
                self._queue.done(key)

    async def _reconcile(self, key: Key) -> None:
        pool = self._pools.get(key)
        if pool is None:
            self._queue.forget(key)
            return
        pods = [pod for pod in self._pods.values() if pod.pool_uid == pool.uid]
        held = {name for (namespace, _), name in self._held.items() if namespace == pool.namespace}
        todo = plan(pool, pods, held, self._settings)
        for pod in todo.delete:
            await self.delete(pod)
        pause, message = self.pause(key, todo), todo.message
        refused = False
        wanted = 0 if pause else todo.create
        body = build_warm_pod(pool, self._settings) if wanted else {}
        try:
            for _ in range(wanted):
                self.on_pod(None, await self._client.request("POST", pods_path(pool.namespace), body))
        except ApiError as error:
            if error.status not in (400, 403, 422):
                raise
            refused, message = True, f"the API server refuses a pod: {error.message}"[:1000]
        if pause and todo.create:
            message = message or "pods ended before a job took them; others are made after a pause, which doubles"
            self._queue.add_after(key, pause)
        await self._write_status(pool, todo.ready, message)
        if refused:
            raise ApiError(403, "PodRefused", message, retry_after=10.0)

    def pause(self, key: Key, todo: PoolPlan) -> float:
        """Seconds for which no pod is made, as pods have ended by themselves."""
        now = time.monotonic()
        losses, until = self._losses.get(key, (0, now))
        if todo.lost:
            losses = 1 if now - until > LONGEST_REPLACE_SECONDS else losses + 1
            until = max(until, now + replace_delay(losses))
            self._losses[key] = (losses, until)
        return max(until - now, 0.0)

    def _gone(self, key: Key) -> None:
        self._pools.pop(key, None)
        self._losses.pop(key, None)

    async def delete(self, pod: WarmPod) -> bool:
        """Delete a pod, unless it has changed: a job may just have taken it. Whether it goes, or is gone: then no
        hand-over that is still under way can meet it any more."""
        body = {"preconditions": {"uid": pod.uid, "resourceVersion": pod.resource_version}}
        try:
            answer = await self._client.request("DELETE", pods_path(pod.namespace, pod.name), body)
        except ApiError as error:
            if error.status == 404:
                self.saw(pod.namespace, pod.name, None)
            elif error.status != 409:
                raise
            return error.status == 404
        if answer.get("kind") == "Pod":
            self.on_pod(None, answer)
        return True

    async def _write_status(self, pool: PoolView, ready: int, message: str) -> None:
        """Say how many pods wait, if that is news."""
        if pool.deleting:
            return
        status = pool.status.model_copy(
            update={"observed_generation": pool.generation, "ready": ready, "message": message}
        )
        if status == pool.status:
            return
        body = {"status": status.model_dump(by_alias=True, mode="json", exclude_none=True)}
        path = pools_path(pool.namespace, pool.name, "status")
        self.on_pool(None, await self._client.request("PATCH", path, body, content_type=MERGE_PATCH))
