"""Whose turn it is to fetch."""

from __future__ import annotations

import asyncio

from claudejobs.api.queue_job import QueueJob
from claudejobs.intake.turns import Turn, Turns
from claudejobs.reconcile.admission import Room


class Field:
    """Queues that share ``free`` slots; none looks ahead."""

    def __init__(self, queues: int, free: int) -> None:
        self.free = free
        self.turns = Turns(lambda _namespace: Room(self.free))
        self.queues = [Turn(asyncio.Event(), "jobs") for _ in range(queues)]
        for queue in self.queues:
            self.turns.join(queue)

    def take(self, number: int) -> bool:
        """Whether a queue may fetch."""
        self.queues[number].wake.clear()
        return self.turns.take(self.queues[number], look_ahead=0)

    def taken(self, number: int, job_id: str | None) -> None:
        """It fetched a job, whose resource was admitted at once; or there was none."""
        job = QueueJob("bull:tasks", job_id, 0) if job_id else None
        self.turns.taken(self.queues[number], job)
        if job:
            self.queues[number].unborn.discard(job)
            self.free -= 1

    def woken(self) -> list[int]:
        """The queues that are to look again."""
        return [number for number, queue in enumerate(self.queues) if queue.wake.is_set()]


def test_a_queue_that_finds_nothing_wakes_the_one_that_it_kept_back() -> None:
    field = Field(2, free=1)
    assert field.take(0)
    assert not field.take(1)  # the only slot may be the first one's
    field.taken(0, None)
    assert field.woken() == [1]
    assert field.take(1)


def test_a_queue_that_may_not_fetch_wakes_the_others_once() -> None:
    field = Field(3, free=0)
    for number in range(3):
        assert not field.take(number)
    field.turns.pass_on(field.queues[0])
    assert field.woken() == [1, 2]
    assert not field.take(1)
    field.turns.pass_on(field.queues[2])
    assert field.woken() == [1, 2]  # the third was never asked again; the first wants nothing


def test_queues_alternate() -> None:
    field = Field(2, free=1)
    order = []
    for number in (0, 1) * 6:
        if field.take(number):
            order.append(number)
            field.taken(number, f"job-{len(order)}")
            field.take(number)  # a queue asks for more at once
            field.free = 1  # and the job ends
            field.turns.room_made()
    assert order == [0, 1] * 6
