"""What the gateway knows of jobs and pods: lists both, then follows their changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from claudejobs.kube.client import POD_SELECTOR, ApiError, KubeClient, jobs_path, pods_path
from claudejobs.reconcile.views import Key, PodView, is_newer

from .admission import Caller, Job, admit, has_ended
from .refusal import RefusedError, forbidden, not_yet

logger = logging.getLogger(__name__)

LONGEST_DELAY = 15.0
PAUSE = 0.1
"""Seconds between two watches: nothing that ends them at once makes a busy loop."""


class Reflector:
    """Keeps one collection in step. ``listed`` takes all objects of it, ``changed`` an event's type and its object."""

    def __init__(
        self,
        client: KubeClient,
        path: str,
        selector: str,
        listed: Callable[[list[dict[str, Any]]], None],
        changed: Callable[[str, dict[str, Any]], object],
    ) -> None:
        self._client = client
        self._path = path
        self._selector = selector
        self._listed = listed
        self._changed = changed
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Go on until cancelled, whatever the API server does."""
        version, delay = "", 0.5
        while True:
            try:
                if not version:
                    version = await self._list()
                    self.synced.set()
                async for event in self._client.watch(self._path, self._selector, version):
                    obj, delay = event["object"], 0.5
                    version = obj["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._changed(event["type"], obj)
                await asyncio.sleep(PAUSE)
            except ApiError as error:
                if error.status == 410:  # the server has forgotten what came after that version
                    version = ""
                    await asyncio.sleep(PAUSE)
                else:
                    logger.warning("following %s failed: %s; again in %.1f s", self._path, error, delay)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, LONGEST_DELAY)

    async def _list(self) -> str:
        """Read all; the version that what was read is of."""
        items: list[dict[str, Any]] = []
        version = ""
        async for page in self._client.pages(self._path, self._selector):
            items += page["items"]
            version = str(page["metadata"]["resourceVersion"])
        self._listed(items)
        return version


class Registry:
    """The pods and jobs of the namespaces that are served.

    Attributes:
        on_end: called with the UID of a pod that has ended, or is about to.
    """

    def __init__(self, client: KubeClient, namespaces: list[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._namespaces = namespaces
        self._clock = clock
        self._pods: dict[Key, PodView] = {}
        self._jobs: dict[Key, Job] = {}
        self._looked: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._reflectors: list[Reflector] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.on_end: Callable[[str], None] = lambda _: None

    @property
    def synced(self) -> bool:
        """Whether everything was listed once."""
        return bool(self._reflectors) and all(reflector.synced.is_set() for reflector in self._reflectors)

    @property
    def failed(self) -> bool:
        """Whether something that should run for ever has ended."""
        return any(task.done() for task in self._tasks)

    def start(self) -> None:
        """Begin to list and follow."""
        everywhere: list[str | None] = [None]
        for namespace in self._namespaces or everywhere:
            self._reflectors += [
                Reflector(
                    self._client,
                    pods_path(namespace),
                    POD_SELECTOR,
                    lambda items, where=namespace: self._pods_listed(where, items),  # type: ignore[misc]
                    lambda kind, obj: self._pod_gone(obj) if kind == "DELETED" else self._put_pod(obj),
                ),
                Reflector(
                    self._client,
                    jobs_path(namespace),
                    "",
                    lambda items, where=namespace: self._jobs_listed(where, items),  # type: ignore[misc]
                    lambda kind, obj: self._job_gone(obj) if kind == "DELETED" else self._put_job(obj),
                ),
            ]
        self._tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]

    async def stop(self) -> None:
        """Follow nothing any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def job_of(self, caller: Caller) -> Job:
        """The job whose running attempt the caller is.

        Raises:
            RefusedError: it is none, or that cannot be told.
        """
        if self._namespaces and caller.namespace not in self._namespaces:
            raise forbidden(f"jobs of namespace {caller.namespace} are not served here")
        try:
            return self._admit(caller)
        except RefusedError:
            pod = self._pods.get((caller.namespace, caller.pod))
            if pod is not None and pod.uid == caller.pod_uid and has_ended(pod):
                raise
            # What was followed may be behind: a new pod's first request, an attempt that was recorded just now.
            if not await self._look(caller):
                raise
        return self._admit(caller)

    def _admit(self, caller: Caller) -> Job:
        pod = self._pods.get((caller.namespace, caller.pod))
        return admit(caller, pod, self._jobs.get(pod.job) if pod else None)

    async def _look(self, caller: Caller) -> bool:
        """Read pod and job themselves, once for all that ask at the same time, and at most once a second for each pod;
        whether it was done."""
        looking = self._looking.get(caller.pod_uid)
        if looking is None:
            now = self._clock()
            self._looked = {uid: when for uid, when in self._looked.items() if now - when < 1.0}
            if caller.pod_uid in self._looked:
                return False
            looking = self._looking[caller.pod_uid] = asyncio.create_task(self._read(caller))
            looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, even if nobody waits
        try:
            await asyncio.shield(looking)  # others wait for it, too, when this client goes away
        except ApiError as error:
            raise not_yet(f"the Kubernetes API server cannot be asked about pod {caller.pod}") from error
        return True

    async def _read(self, caller: Caller) -> None:
        try:
            obj = await self._client.get(pods_path(caller.namespace, caller.pod), timeout=10.0)
            pod = self._put_pod(obj) if obj else None
            job = await self._client.get(jobs_path(*pod.job), timeout=10.0) if pod else None
            if job:
                self._put_job(job)
            self._looked[caller.pod_uid] = self._clock()
        finally:
            del self._looking[caller.pod_uid]

    def _put_pod(self, obj: dict[str, Any]) -> PodView | None:
        new = PodView.parse(obj)
        if new is None:
            return None
        key = (new.namespace, new.name)
        old = self._pods.get(key)
        if old is not None and old.uid == new.uid and not is_newer(new.resource_version, old.resource_version):
            return old
        if old is not None and old.uid != new.uid:
            self.on_end(old.uid)
        self._pods[key] = new
        if has_ended(new):
            self.on_end(new.uid)
        return new

    def _put_job(self, obj: dict[str, Any]) -> None:
        new = Job.parse(obj)
        old = self._jobs.get(new.key)
        if old is None or old.uid != new.uid or is_newer(new.resource_version, old.resource_version):
            self._jobs[new.key] = new

    def _pod_gone(self, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        held = self._pods.get((meta["namespace"], meta["name"]))
        if held is not None and held.uid == meta["uid"]:
            del self._pods[held.namespace, held.name]
        self.on_end(meta["uid"])

    def _job_gone(self, obj: dict[str, Any]) -> None:
        meta = obj["metadata"]
        held = self._jobs.get((meta["namespace"], meta["name"]))
        if held is not None and held.uid == meta["uid"]:
            del self._jobs[held.key]

    def _pods_listed(self, namespace: str | None, items: list[dict[str, Any]]) -> None:
        there = {item["metadata"]["uid"] for item in items}
        for key, held in list(self._pods.items()):
            if namespace in (None, held.namespace) and held.uid not in there:
                del self._pods[key]
                self.on_end(held.uid)
        for item in items:
            self._put_pod(item)

    def _jobs_listed(self, namespace: str | None, items: list[dict[str, Any]]) -> None:
        there = {item["metadata"]["uid"] for item in items}
        for key, held in list(self._jobs.items()):
            if namespace in (None, held.namespace) and held.uid not in there:
                del self._jobs[key]
        for item in items:
            self._put_job(item)
