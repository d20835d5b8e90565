"""What is done with queue jobs, whatever happens around them: one run each, the right end, nothing held for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from claudejobs.api.status import Phase
from claudejobs.intake.plan import REACH, fetch_budget
from claudejobs.reconcile.admission import Room

from .model.queue_world import ELSEWHERE, OURS, WORKER, Crash, QueuedJob, World

IDS = st.sampled_from(["a", "b"])
FUSE = st.sampled_from([None, None, None, None, 0, 1, 2, 3, 4])
ROUNDS = 12
"""In so many sweeps everything must be at its end, once nothing happens any more."""


class QueueMachine(RuleBasedStateMachine):
    """One queue with two job ids."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.disk = self.world.snapshot()
        self.tokens = 1

    @contextmanager
    def dying(self, fuse: int | None) -> Iterator[None]:
        """The intake dies at its write of this number, if it comes so far."""
        self.world.fuse = fuse
        try:
            yield
        except Crash:
            self.world.crash()
        self.world.fuse = None

    def some(self, *states: str) -> list[QueuedJob]:
        """Jobs in one of these states, or in any."""
        return [job for job in self.world.queue.values() if not states or job.state in states]

    def draw(self, data: Any, *states: str) -> QueuedJob:
        found = self.some(*states)
        job: QueuedJob = found[data.draw(st.integers(0, len(found) - 1))]
        return job

    # Producers and users.

    @rule(job_id=IDS, scheduled=st.booleans())
    def add(self, job_id: str, scheduled: bool) -> None:
        self.world.add(job_id, scheduled)

    @precondition(lambda self: self.world.queue)
    @rule(data=st.data())
    def remove_by_force(self, data: Any) -> None:
        job = self.draw(data)
        del self.world.queue[job.id]
        self.world.excuse(job.identity, "removed")

    @precondition(lambda self: self.some("wait", "active"))
    @rule(data=st.data())
    def ask_to_cancel(self, data: Any) -> None:
        job = self.draw(data, "wait", "active")
        job.cancel = job.identity
        self.world.excuse(job.identity, "cancel")

    @precondition(lambda self: self.some("failed"))
    @rule(data=st.data(), reset=st.booleans())
    def retry_by_hand(self, data: Any, reset: bool) -> None:
        job = self.draw(data, "failed")
        job.state, job.end, job.deferred = "wait", "", ""
        job.finishes = 0 if reset else job.finishes

    @precondition(lambda self: self.world.api)
    @rule(data=st.data(), phase=st.sampled_from([Phase.COMPLETED, Phase.FAILED]))
    def resource_ends(self, data: Any, phase: Phase) -> None:
        self.world.end_resource(data.draw(st.sampled_from(sorted(self.world.api))), phase)

    @precondition(lambda self: self.world.api)
    @rule(data=st.data(), delete=st.booleans())
    def cancel_by_kubectl(self, data: Any, delete: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.api)))
        view = self.world.api[name]
        self.world.excuse(view.queue_job, "kubectl")
        if delete:
            del self.world.api[name]
        else:
            self.world.end_resource(name, Phase.CANCELLED)

    # Other workers.

    @precondition(lambda self: self.some("wait"))
    @rule(data=st.data(), lock=st.sampled_from([WORKER, ELSEWHERE]), noted=st.booleans())
    def somebody_else_fetches(self, data: Any, lock: str, noted: bool) -> None:
        job = self.draw(data, "wait")
        self.world.excuse(job.identity, "another worker")
        if lock == ELSEWHERE and job.uid.startswith(f"{job.identity.resource_name}/"):
            # Noted, and there is no such resource in that cluster: it was deleted, as far as it can tell.
            job.state, job.end, job.finishes, job.deliveries = "failed", "theirs", job.finishes + 1, job.deliveries + 1
            self.world.successors[job.id] = 1
            return
        job.state, job.lock = "active", lock
        if lock == ELSEWHERE and noted:
            job.uid = f"{job.identity.resource_name}/theirs"

    @precondition(lambda self: self.some("active"))
    @rule(data=st.data(), failed=st.booleans())
    def somebody_else_finishes(self, data: Any, failed: bool) -> None:
        job = self.draw(data, "active")
        if job.lock in (WORKER, ELSEWHERE):
            job.state, job.end, job.lock = "failed" if failed else "completed", "theirs", ""
            job.finishes += 1
            self.world.successors[job.id] = 1

    @precondition(lambda self: self.some("active"))
    @rule(data=st.data(), checks=st.integers(0, 2))
    def lock_expires(self, data: Any, checks: int) -> None:
        """And other workers check for stalled jobs."""
        self.draw(data, "active").lock = ""
        for _ in range(checks):
            self.world.check_stalled()

    # The intake.

    @precondition(lambda self: self.some("wait"))
    @rule(fuse=FUSE)
    def fetch(self, fuse: int | None) -> None:
        with self.dying(fuse):
            self.world.fetch()

    @rule(fuse=FUSE, hear=st.booleans())
    def sweep(self, fuse: int | None, hear: bool) -> None:
        if hear:
            self.world.hear()
        with self.dying(fuse):
            self.world.sweep()
        if hear and fuse is None:
            self.world.check_swept()

    @rule()
    def made_anew(self) -> None:
        """The ClaudeCodeQueue is deleted and made again: its token is another one."""
        self.tokens += 1
        self.world.token = f"{OURS}{self.tokens}"
        self.world.crash()

    # Redis.

    @rule()
    def write_to_disk(self) -> None:
        self.disk = self.world.snapshot()

    @rule(everything=st.booleans())
    def redis_loses_data(self, everything: bool) -> None:
        """All of it, or what is not on its disk."""
        self.world.restore(({}, {}, 0) if everything else self.disk)

    # What always holds.

    @invariant()
    def no_run_has_a_second_resource(self) -> None:
        for identity, times in self.world.made.items():
            deleted = "kubectl" in self.world.excuses.get(identity, ())
            assert times == 1 or deleted, f"{times} resources were made for {identity}"

    @invariant()
    def no_run_is_finished_twice(self) -> None:
        if not self.world.rolled_back:
            assert all(times == 1 for times in self.world.delivered.values()), self.world.delivered

    def teardown(self) -> None:
        """Nothing happens any more but what must: other workers are gone, and resources come to their end."""
        world = self.world
        for _ in range(ROUNDS):
            world.hear()
            world.sweep()
            world.check_swept()
            for name in list(world.api):
                world.end_resource(name, Phase.COMPLETED)
            for job in world.queue.values():
                if job.lock and job.lock != world.token:
                    job.lock = ""  # nobody renews it
            while any(job.state == "wait" for job in world.queue.values()):
                world.fetch()
        ends = {job.id: (job.state, job.lock) for job in world.queue.values()}
        assert all(end in (("completed", ""), ("failed", "")) for end in ends.values()), ends
        for job in world.queue.values():
            if job.scheduled:
                assert world.successors.get(job.id) == 1, f"the chain of {job.id} ends"
        world.sweep()
        assert all(view.uid in world.settled for view in world.seen.values()), "something is still awaited"


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_what_a_former_resource_has_begun_and_not_noted_goes_on_once_its_lock_is_over() -> None:
    world = World()
    world.add("a", scheduled=False)
    world.fuse = 2  # fetched and made, and not noted
    with pytest.raises(Crash):
        world.fetch()
    world.token = f"{OURS}2"
    world.crash()
    world.sweep()
    (view,) = world.api.values()
    assert not view.spec.cancel
    world.queue["a"].lock = ""
    world.sweep()
    world.end_resource(view.name, Phase.COMPLETED)
    world.hear()
    world.sweep()
    assert (world.queue["a"].state, world.made) == ("completed", {view.queue_job: 1})


def test_fetch_budget() -> None:
    assert fetch_budget(Room(free=3), look_ahead=2, coming=0) == 3 + 2 * REACH
    assert fetch_budget(Room(free=3), look_ahead=2, coming=3) == 2
    assert fetch_budget(Room(free=0, waiting=1), look_ahead=2, coming=0) == 1
    assert fetch_budget(Room(free=0, waiting=4), look_ahead=0, coming=0) == 0


def test_more_is_fetched_while_a_slot_stays_empty() -> None:
    barred = Room(free=1, waiting=9, barred=9)
    assert fetch_budget(barred, look_ahead=3, coming=0) == 1 + 3 * REACH - 9
    assert fetch_budget(barred, look_ahead=3, coming=1) == 0, "the one that is coming may be for the slot"
    assert fetch_budget(Room(free=1, waiting=10, barred=9), look_ahead=3, coming=0) == 0, "one waits for the slot"
    assert fetch_budget(Room(free=0, waiting=9, barred=9), look_ahead=3, coming=0) == 0
    assert fetch_budget(Room(free=1, waiting=3 * REACH + 1, barred=31), look_ahead=3, coming=0) == 0
    assert fetch_budget(Room(free=1, waiting=1, barred=1), look_ahead=0, coming=0) == 0
