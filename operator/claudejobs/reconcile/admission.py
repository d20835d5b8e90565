"""How many jobs run at a time, and who is next: higher priority first, then the older job."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from datetime import datetime

from .views import Key

_Rank = tuple[int, datetime, Key]


class Admission:
    """Keeps count of the jobs that hold a slot and of those that wait for one.

    It is a view of what the jobs' phases say, rebuilt by ``update`` calls after a restart, and never the source
    of truth. A slot is held from the decision to make the pod until the attempt has ended.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: set[Key] = set()
        self._waiting: list[_Rank] = []
        self._ranks: dict[Key, _Rank] = {}

    def hold(self, key: Key) -> None:
        """The job has a pod: it holds a slot, even above the limit (it may have been lowered)."""
        self._forget_waiting(key)
        self._holders.add(key)

    def wait(self, key: Key, priority: int, created: datetime) -> bool:
        """The job wants a slot. A job that held one gives it back and waits like any other.

        Returns:
            Whether a slot became free.
        """
        freed = key in self._holders
        self._holders.discard(key)
        rank = (-priority, created, key)
        if self._ranks.get(key) != rank:
            self._forget_waiting(key)
            insort(self._waiting, rank)
            self._ranks[key] = rank
        return freed

    def release(self, key: Key) -> bool:
        """The job neither has nor wants a slot.

        Returns:
            Whether someone else may go now: a slot became free, or the job stood in the way of another.
        """
        freed = key in self._holders or key in self._ranks
        self._holders.discard(key)
        self._forget_waiting(key)
        return freed

    def admits(self, key: Key) -> bool:
        """Whether the job may have a pod now."""
        if key in self._holders:
            return True
        rank = self._ranks.get(key)
        return rank is not None and bisect_left(self._waiting, rank) < self._limit - len(self._holders)

    def next_up(self) -> Iterable[Key]:
        """The waiting jobs for which there is a slot, the first first."""
        free = max(0, self._limit - len(self._holders))
        return [rank[2] for rank in self._waiting[:free]]

    def waiting_message(self) -> str:
        """Why a job waits, for people; the same for all, so that no status is written when others move."""
        return f"waits for a free slot: {self._limit} jobs may run at a time (MAX_CONCURRENT_JOBS)"

    def _forget_waiting(self, key: Key) -> None:
        rank = self._ranks.pop(key, None)
        if rank is not None:
            del self._waiting[bisect_left(self._waiting, rank)]
