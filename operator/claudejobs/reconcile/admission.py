"""How many jobs run at a time, and who is next.

Higher priority goes first. Among jobs of one priority, the user with the fewest running jobs goes first, so that a
user who queues a thousand does not keep the others waiting; then the older job. A job whose namespace or user is
at its limit is passed over.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from .views import Key

NAMED_POSITIONS = 100
"""How far back a waiting job is told its position. Those behind would be told by thousands of writes."""


@dataclass(frozen=True)
class Limits:
    """Most jobs that have a pod at a time: in all, in one namespace, of one user (``None``: no such limit)."""

    total: int
    per_namespace: int | None = None
    per_user: int | None = None


@dataclass(frozen=True)
class Room:
    """What there is of slots for the jobs of one namespace.

    Attributes:
        free: slots that a job could have now; a limit on its user may say otherwise.
        waiting: jobs that want a slot, those included that stand aside.
        barred: those of them that no slot would help, because jobs of their own user fill the user's limit.
    """

    free: int
    waiting: int = 0
    barred: int = 0


@dataclass(frozen=True)
class Claim:
    """What the order of waiting jobs depends on. ``user`` is None for jobs that name none; they share one turn."""

    key: Key
    user: str | None
    priority: int
    created: datetime


_Rank = tuple[int, datetime, Key]
_Group = tuple[str, str | None]  # namespace, user: jobs of a group only differ in priority and age


class Admission:
    """Keeps count of the jobs that hold a slot and of those that wait for one.

    It is a view of what the jobs' phases say, rebuilt by ``hold`` and ``wait`` calls after a restart, and never the
    source of truth. A slot is held from the decision to make the pod until the attempt has ended.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._holders: dict[Key, Claim] = {}
        self._namespaces: Counter[str] = Counter()
        self._users: Counter[str | None] = Counter()
        self._waiting: dict[_Group, list[_Rank]] = {}
        self._claims: dict[Key, Claim] = {}
        self._aside: set[Key] = set()
        self._line: list[Key] = []
        self._rest: Iterator[Key] = iter(())

    def hold(self, claim: Claim) -> None:
        """The job has a pod: it holds a slot, even above a limit (it may have been lowered)."""
        if claim.key in self._holders:
            return
        self._stop_waiting(claim.key)
        self._aside.discard(claim.key)
        self._holders[claim.key] = claim
        self._namespaces[claim.key[0]] += 1
        self._users[claim.user] += 1
        self._reorder()

    def wait(self, claim: Claim) -> bool:
        """The job wants a slot. A job that held one gives it back and waits like any other.

        Returns:
            Whether a slot became free.
        """
        freed = self._give_back(claim.key)
        self._aside.discard(claim.key)
        if self._claims.get(claim.key) != claim:
            self._stop_waiting(claim.key)
            insort(self._waiting.setdefault((claim.key[0], claim.user), []), _rank(claim))
            self._claims[claim.key] = claim
            self._reorder()
        return freed

    def release(self, key: Key) -> bool:
        """The job neither has nor wants a slot.

        Returns:
            Whether someone else may go now: a slot became free, or the job stood in the way of another.
        """
        freed = self._give_back(key)
        self._aside.discard(key)
        return self._stop_waiting(key) or freed

    def stand_aside(self, key: Key) -> bool:
        """A job that had or wanted a slot can do nothing with it now: it keeps it from nobody, until it waits again.

        Returns:
            As ``release`` does.
        """
        freed = self.release(key)
        if freed:
            self._aside.add(key)
        return freed

    @property
    def _free(self) -> int:
        """Slots that nobody holds; negative when more are held than the limit, which was lowered."""
        return self._limits.total - len(self._holders)

    def admits(self, key: Key) -> bool:
        """Whether the job may have a pod now."""
        return key in self._holders or key in self._first(self._free)

    def next_up(self) -> list[Key]:
        """The waiting jobs for which there is a slot, the first first."""
        return list(self._first(self._free))

    def room(self, namespace: str) -> Room:
        """Free slots and waiting jobs of a namespace."""
        free, own = self._free, self._limits.per_namespace
        if own is not None:
            free = min(free, own - self._namespaces[namespace])
        waiting = {user: len(ranks) for (of, user), ranks in self._waiting.items() if of == namespace}
        barred = sum(self._barred(user, count) for user, count in waiting.items())
        aside = sum(of == namespace for of, _ in self._aside)
        return Room(max(0, free), sum(waiting.values()) + aside, barred)

    def _barred(self, user: str | None, waiting: int) -> int:
        """How many of a user's waiting jobs the limit on users keeps back."""
        limit = self._limits.per_user
        return 0 if limit is None or not user else max(0, waiting - max(0, limit - self._users[user]))

    def waiting_message(self, key: Key) -> str:
        """Why a job waits, for people."""
        claim = self._claims.get(key)
        limits = self._limits
        if claim and self._full(limits.per_namespace, self._namespaces[key[0]]):
            return f"waits: {limits.per_namespace} jobs of one namespace may run at a time (MAX_JOBS_PER_NAMESPACE)"
        if claim and claim.user and self._full(limits.per_user, self._users[claim.user]):
            return f"waits: {limits.per_user} jobs of one user may run at a time (MAX_JOBS_PER_USER)"
        line = list(self._first(NAMED_POSITIONS))
        place = f"position {line.index(key) + 1}" if key in line else f"more than {len(line)} are before it"
        return f"waits: {limits.total} jobs may run at a time (MAX_CONCURRENT_JOBS); {place}"

    def _reorder(self) -> None:
        self._line, self._rest = [], self._in_order()

    def _first(self, count: int) -> Iterator[Key]:
        """The first waiting jobs in the order in which they will go, put into it no further than anybody asks: among a
        thousand jobs, who is looked at next is among the first."""
        for place in range(count):
            if place == len(self._line):
                following = next(self._rest, None)
                if following is None:
                    return
                self._line.append(following)
            yield self._line[place]

    def _in_order(self) -> Iterator[Key]:
        """Play the admissions through: each one counts for its user and namespace before the next is chosen."""
        namespaces, users = self._namespaces.copy(), self._users.copy()
        heap = [
            (ranks[0][0], users[group[1]], ranks[0][1:], 0, _sortable(group)) for group, ranks in self._waiting.items()
        ]
        heapq.heapify(heap)
        while heap:
            priority, running, rest, index, named = heapq.heappop(heap)
            group = (named[0], named[2] if named[1] else None)
            if running != users[group[1]]:
                heapq.heappush(heap, (priority, users[group[1]], rest, index, named))
                continue
            if self._full(self._limits.per_namespace, namespaces[group[0]]):
                continue
            if group[1] and self._full(self._limits.per_user, users[group[1]]):
                continue
            yield rest[1]
            namespaces[group[0]] += 1
            users[group[1]] += 1
            ranks = self._waiting[group]
            if index + 1 < len(ranks):
                following = ranks[index + 1]
                heapq.heappush(heap, (following[0], users[group[1]], following[1:], index + 1, named))

    @staticmethod
    def _full(limit: int | None, count: int) -> bool:
        return limit is not None and count >= limit

    def _give_back(self, key: Key) -> bool:
        claim = self._holders.pop(key, None)
        if claim is None:
            return False
        self._namespaces[key[0]] -= 1
        self._users[claim.user] -= 1
        self._reorder()
        return True

    def _stop_waiting(self, key: Key) -> bool:
        claim = self._claims.pop(key, None)
        if claim is None:
            return False
        group = (key[0], claim.user)
        ranks = self._waiting[group]
        del ranks[bisect_left(ranks, _rank(claim))]
        if not ranks:
            del self._waiting[group]
        self._reorder()
        return True


def _rank(claim: Claim) -> _Rank:
    return (-claim.priority, claim.created, claim.key)


def _sortable(group: _Group) -> tuple[str, bool, str]:
    """None and text cannot be compared."""
    return (group[0], group[1] is not None, group[1] or "")
