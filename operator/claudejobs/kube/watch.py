"""Watches jobs, pods, queues and pools through Kopf, in a thread with an event loop of its own.

Kopf is used as a watch only: its handlers return nothing, so it writes nothing, and what must happen is decided
elsewhere from the state seen. It has its own loop because it cancels, when it stops, every task that was born
after it in the loop that it runs in.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import kopf

from claudejobs.api.base import GROUP, PLURAL, VERSION
from claudejobs.api.pool import POOL_PLURAL
from claudejobs.api.queue import QUEUE_PLURAL
from claudejobs.settings import Settings

from .client import POD_SELECTOR

logger = logging.getLogger(__name__)

Handler = Callable[[str | None, dict[str, Any]], None]
"""Takes the event's type (``None`` for an object that was listed) and the object."""


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no last-handled configuration: nothing here works with diffs, and making one costs five times the rest of
    an event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Keeps no handler's progress, for there are no handlers that have one; Kopf would copy each object to clean it."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class Watch:
    """Feeds the events of jobs, pods, queues and pools to their handlers, on the event loop that ``start`` was called
    on."""

    def __init__(
        self, settings: Settings, on_job: Handler, on_pod: Handler, on_queue: Handler, on_pool: Handler
    ) -> None:
        self._namespaces = settings.watch_namespaces
        self._pools = settings.warm_pools
        self._on_job = on_job
        self._on_pod = on_pod
        self._on_queue = on_queue
        self._on_pool = on_pool
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failed = asyncio.Event()
        """Set when Kopf ended without being asked to: the process should end, and be started again."""

    def start(self) -> None:
        """Start watching."""
        loop = asyncio.get_running_loop()
        registry = self._registry(loop)
        self._thread = threading.Thread(target=self._run, args=(registry, loop), name="watch", daemon=True)
        self._thread.start()

    async def stop(self, timeout: float = 5.0) -> None:
        """Stop watching; waits for the thread at most ``timeout`` seconds."""
        self._stop.set()
        if self._thread:
            await asyncio.to_thread(self._thread.join, timeout)

    def _run(self, registry: kopf.OperatorRegistry, loop: asyncio.AbstractEventLoop) -> None:
        where: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        # Kopf would make itself an identity from the user's name, which a container's user need not have.
        where["identity"] = "claudejobs"
        try:
            asyncio.run(
                kopf.operator(registry=registry, settings=_settings(), standalone=True, stop_flag=self._stop, **where)
            )
        except Exception:
            logger.exception("the watch ended")
        if not self._stop.is_set():
            loop.call_soon_threadsafe(self.failed.set)

    def _registry(self, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        def forward(handler: Handler, event: Any) -> None:
            loop.call_soon_threadsafe(handler, event["type"], event["object"])

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def job_event(event: Any, **_: Any) -> None:
            forward(self._on_job, event)

        @kopf.on.event("v1", "pods", registry=registry)
        async def pod_event(event: Any, **_: Any) -> None:
            forward(self._on_pod, event)

        @kopf.on.event(GROUP, VERSION, QUEUE_PLURAL, registry=registry)
        async def queue_event(event: Any, **_: Any) -> None:
            forward(self._on_queue, event)

        if self._pools:

            @kopf.on.event(GROUP, VERSION, POOL_PLURAL, registry=registry)
            async def pool_event(event: Any, **_: Any) -> None:
                forward(self._on_pool, event)

        return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.finalizer = f"{GROUP}/unused"  # Kopf removes its own finalizer wherever it sees it
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["v1", "pods"] = POD_SELECTOR
    settings.networking.request_timeout = 60
    return settings
