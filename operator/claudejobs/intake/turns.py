"""Whose turn it is: queues that share the same slots take jobs one at a time, the one that waited longest first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from claudejobs.api.queue_job import QueueJob
from claudejobs.reconcile.admission import Room

from .plan import fetch_budget


@dataclass(eq=False)
class Turn:
    """The place of one queue among the others.

    Attributes:
        wake: set when there may be room.
        namespace: where the queue's jobs are made.
        unborn: queue jobs that were fetched and have no resource yet.
        fetching: a job is being fetched.
        served: grows with every job that any queue took; of this queue's last one.
        wanting: it found no room; false as soon as it is known to have nothing to fetch.
    """

    wake: asyncio.Event
    namespace: str
    unborn: set[QueueJob] = field(default_factory=set)
    fetching: bool = False
    served: int = 0
    wanting: bool = False


class Turns:
    """The room that there is for jobs of queues."""

    def __init__(self, room: Callable[[str], Room]) -> None:
        """``room``: what there is for the jobs of a namespace."""
        self._room = room
        self._turns: set[Turn] = set()
        self._count = itertools.count(1)

    def join(self, turn: Turn) -> None:
        """Another queue is drained."""
        self._turns.add(turn)

    def leave(self, turn: Turn) -> None:
        """It is drained no more."""
        self._turns.discard(turn)
        self.room_made()

    def room_made(self) -> None:
        """A slot may have become free."""
        for turn in self._turns:
            turn.wake.set()

    def take(self, turn: Turn, look_ahead: int) -> bool:
        """Whether a queue may fetch a job now. If so it is being fetched until ``taken`` is called."""
        here = [other for other in self._turns if other.namespace == turn.namespace]
        coming = sum(len(other.unborn) + other.fetching for other in here)
        first = min((other for other in here if other.wanting), key=lambda other: other.served, default=turn)
        if fetch_budget(self._room(turn.namespace), look_ahead, coming) == 0:
            turn.wanting = True
            return False
        if first is not turn and first.served < turn.served:
            turn.wanting = True
            first.wake.set()
            return False
        turn.fetching = True
        return True

    def taken(self, turn: Turn, job: QueueJob | None) -> None:
        """A job was fetched, or there was none."""
        if job is None:
            self.pass_on(turn)
            return
        turn.fetching = False
        turn.unborn.add(job)
        turn.served = next(self._count)

    def born(self, turn: Turn, job: QueueJob) -> None:
        """A fetched job has its resource, which counts from now on, or has ended without one."""
        turn.unborn.discard(job)
        self._wake_wanting()

    def pass_on(self, turn: Turn) -> None:
        """The queue has nothing to fetch, or may not: it keeps no other back."""
        turn.fetching = turn.wanting = False
        self._wake_wanting()

    def _wake_wanting(self) -> None:
        for turn in self._turns:
            if turn.wanting:
                turn.wake.set()
