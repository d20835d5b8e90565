"""A work queue of keys, as client-go has it: a key that is added many times is worked on once, never by two workers
at a time, and again when it was added while it was worked on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BASE_DELAY = 0.1
MAX_DELAY = 60.0


class QueueClosed(Exception):
    """The queue was closed: there is no more work."""


class WorkQueue(Generic[K]):
    """Deduplicating, per-key-serial, with delays and per-key exponential backoff. For one event loop."""

    def __init__(self) -> None:
        self._ready: dict[K, None] = {}
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, key: K) -> None:
        """Have the key worked on as soon as possible."""
        if key in self._active:
            self._again.add(key)
            return
        self._ready[key] = None
        self._wake.set()

    def wake(self, key: K) -> None:
        """The same for a key that may have something to do, but not if it is waiting out a failure."""
        if key not in self._failures:
            self.add(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Have the key worked on no later than in that many seconds."""
        if self._closed:
            return
        due = asyncio.get_running_loop().time() + max(seconds, 0)
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(due, self._fire, key)

    def retry(self, key: K, at_least: float = 0.0) -> float:
        """Have the key worked on after its backoff, which doubles with each failure in a row; the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(BASE_DELAY * 2 ** min(failures, 20), MAX_DELAY)
        delay = max(delay * random.uniform(0.8, 1.0), at_least)  # noqa: S311 - not for secrets
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """The key is no more: drop its timer and failures."""
        self._failures.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def get(self) -> K:
        """Wait for a key; it must be given to ``done`` afterwards.

        Raises:
            QueueClosed: the queue was closed.
        """
        while not self._ready or self._closed:
            if self._closed:
                raise QueueClosed
            self._wake.clear()
            await self._wake.wait()
        key = next(iter(self._ready))
        del self._ready[key]
        self._active.add(key)
        return key

    def done(self, key: K) -> None:
        """The work on a key is over."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def sizes(self) -> dict[str, int]:
        """Keys that wait for a worker, are worked on, and wait out a failure."""
        backing_off = sum(key not in self._ready and key not in self._active for key in self._failures)
        return {"ready": len(self._ready), "active": len(self._active), "backing_off": backing_off}

    def close(self) -> None:
        """End: ``get`` raises from now on, and no timer fires."""
        self._closed = True
        self._wake.set()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
