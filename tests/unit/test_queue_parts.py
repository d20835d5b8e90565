"""The small parts of the intake: identities, whose turn it is, reports, conditions."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from claudejobs.api.base import MAX_JOB_NAME
from claudejobs.api.queue import QueueStatus
from claudejobs.api.queue_job import QueueJob
from claudejobs.intake import state
from claudejobs.intake.bull import BullQueue, Snapshot
from claudejobs.intake.reports import MAX_LINES, Reports
from claudejobs.intake.turns import Turn, Turns
from claudejobs.reconcile.admission import Room

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NUMBERS = st.integers(0, 2**53)
IDENTITIES = st.builds(QueueJob, st.text(), st.text(), NUMBERS, NUMBERS, NUMBERS)


class TestIdentity:
    @given(IDENTITIES)
    def test_it_is_read_as_it_was_written(self, identity: QueueJob) -> None:
        assert QueueJob.parse(identity.annotation()) == identity

    @given(IDENTITIES)
    def test_its_resource_can_have_the_name(self, identity: QueueJob) -> None:
        name = identity.resource_name
        assert len(name) <= MAX_JOB_NAME
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert name[0] != "-"
        assert name[-1] != "-"

    @given(IDENTITIES, st.sampled_from(["queue", "id", "timestamp", "finishes", "deliveries"]))
    def test_each_part_of_it_makes_another_resource(self, identity: QueueJob, part: str) -> None:
        value = getattr(identity, part)
        other = replace(identity, **{part: value + (1 if isinstance(value, int) else "x")})
        assert other.resource_name != identity.resource_name

    def test_what_is_no_identity_is_none(self) -> None:
        good = json.loads(QueueJob("q", "1", 2).annotation())
        wrong: list[Any] = [good | {"id": 1}, good | {"timestamp": "2"}, good | {"timestamp": True}, good | {"x": 1}]
        for annotation in [None, "", "x", "[]", "1", '"q"', "{}", *map(json.dumps, wrong)]:
            assert QueueJob.parse(annotation) is None, annotation


class TestTurns:
    @given(
        waiting=st.lists(st.integers(0, 12), min_size=1, max_size=4),
        slots=st.integers(0, 8),
        look_ahead=st.integers(0, 5),
        order=st.lists(st.integers(0, 3), max_size=60),
    )
    def test_queues_share_what_there_is(
        self, waiting: list[int], slots: int, look_ahead: int, order: list[int]
    ) -> None:
        """``waiting``: jobs of each queue; ``order``: which of them asks next."""
        turns = Turns(lambda _: Room(slots))
        here = [Turn(asyncio.Event(), "team") for _ in waiting]
        left, taken = list(waiting), [0] * len(waiting)
        for turn in here:
            turns.join(turn)

        def ask(number: int) -> None:
            turn = here[number]
            if turns.take(turn, look_ahead):
                turns.taken(turn, QueueJob("q", f"{number}-{taken[number]}", 1) if left[number] else None)
                taken[number] += bool(left[number])
                left[number] -= bool(left[number])

        for number in order:
            ask(number % len(here))
            assert sum(taken) <= slots + look_ahead
        before = list(taken)
        for _ in range(2 * (slots + look_ahead) + 2):
            for number in range(len(here)):
                ask(number)
        assert sum(taken) == min(slots + look_ahead, sum(waiting)), "there is room that nobody takes"
        more = [after - former for after, former in zip(taken, before, strict=True)]
        greedy = [extra for extra, rest in zip(more, left, strict=True) if rest]
        assert max(greedy, default=0) <= min(greedy, default=0) + max(before, default=0) + 1, "somebody is kept back"

    def test_the_one_that_waited_longest_is_first(self) -> None:
        free = 1
        turns = Turns(lambda _: Room(free))
        first, second = Turn(asyncio.Event(), "team"), Turn(asyncio.Event(), "team")
        turns.join(first)
        turns.join(second)
        assert turns.take(first, 0)
        turns.taken(first, QueueJob("q", "a", 1))
        assert not turns.take(second, 0)
        first.unborn.clear()  # it has its resource, and ended: there is room again
        assert not turns.take(first, 0)
        assert second.wake.is_set()
        assert turns.take(second, 0)

    def test_another_namespace_has_its_own_room(self) -> None:
        turns = Turns(lambda namespace: Room(1 if namespace == "b" else 0))
        a, b = Turn(asyncio.Event(), "a"), Turn(asyncio.Event(), "b")
        turns.join(a)
        turns.join(b)
        assert not turns.take(a, 0)
        assert turns.take(b, 0)

    def test_a_job_that_is_being_fetched_takes_a_slot(self) -> None:
        turns = Turns(lambda _: Room(1))
        one, other = Turn(asyncio.Event(), "team"), Turn(asyncio.Event(), "team")
        turns.join(one)
        turns.join(other)
        assert turns.take(one, 0)
        assert not turns.take(other, 0)
        turns.taken(one, None)
        assert other.wake.is_set()
        assert turns.take(other, 0)


class TestReports:
    async def test_what_is_kept_while_redis_is_away_is_bounded(self) -> None:
        client = Redis(port=1, decode_responses=True)
        reports = Reports(BullQueue(client, "bull", "tasks", "uid"))
        jobs = [QueueJob("bull:tasks", str(number), 1) for number in range(3)]
        for number in range(MAX_LINES + 500):
            reports.say(jobs[0], f"line {number}")
        reports.progress(jobs[1], 10)
        reports.progress(jobs[1], 20)
        with pytest.raises((RedisError, OSError)):
            await reports.flush()
        kept = reports._reports[jobs[0]].lines
        assert (len(kept), kept[0], kept[-1]) == (MAX_LINES, "line 500", f"line {MAX_LINES + 499}")
        assert reports._reports[jobs[1]].progress == 20
        reports.keep_logs(jobs[2], 5)
        reports.retain({jobs[1]})
        assert set(reports._reports) == {jobs[1]}
        reports.forget(jobs[1])
        assert (reports._reports, reports._dirty) == ({}, set())
        await client.aclose()


def snapshot(**values: Any) -> Snapshot:
    return replace(Snapshot({"waiting": 2}, None, False, "bullmq:6.7.0"), **values)


class TestState:
    def conditions(self, status: QueueStatus) -> dict[str, tuple[str, str]]:
        return {condition.type: (condition.status, condition.reason) for condition in status.conditions}

    def test_whether_it_is_drained(self) -> None:
        good = state.accepted(QueueStatus(), None, False, 1, NOW)
        assert self.conditions(good) == {"Accepted": ("True", "Accepted")}
        suspended = state.accepted(good, None, True, 2, NOW + timedelta(minutes=1))
        assert self.conditions(suspended) == {"Accepted": ("True", "Suspended")}
        bad = state.accepted(suspended, ("Conflict", "why"), True, 2, NOW + timedelta(hours=1))
        (condition,) = bad.conditions
        assert (condition.status, condition.reason, condition.message) == ("False", "Conflict", "why")
        assert condition.last_transition_time == NOW + timedelta(hours=1)
        assert bad.observed_generation == 2

    def test_what_redis_says(self) -> None:
        oldest = int((NOW - timedelta(seconds=90)).timestamp() * 1000)
        status = state.connected(QueueStatus(), snapshot(oldest=oldest, paused=True), True, None, 1, NOW)
        assert (status.lag_seconds, status.paused, status.counts.waiting) == (90, True, 2)
        expected = {"Connected": ("True", "Connected"), "Compatible": ("True", "Supported")}
        assert self.conditions(status) == expected
        away = state.connected(status, snapshot(), False, ("Redis: gone", NOW.timestamp()), 1, NOW)
        assert (away.counts.waiting, away.lag_seconds, away.last_error) == (2, 90, "Redis: gone")
        assert self.conditions(away)["Connected"] == ("False", "RedisAway")

    def test_an_error_that_goes_on_is_one_write(self) -> None:
        def look(status: QueueStatus, answers: bool, text: str, after: float) -> QueueStatus:
            return state.connected(status, None, answers, (text, NOW.timestamp() + after), 1, NOW)

        began = look(QueueStatus(connected=True), False, "refused", 0)
        assert look(began, False, "refused", 5) == began
        other = look(began, False, "wrong password", 10)
        assert other.last_error_time == NOW + timedelta(seconds=10)
        back = look(other, True, "wrong password", 10)
        assert back.connected
        again = look(back, False, "wrong password", 60)
        assert again.last_error_time == NOW + timedelta(seconds=60)

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            (None, ("Unknown", "NoVersion")),
            ("bullmq:x", ("Unknown", "NoVersion")),
            ("bullmq:5.81.5", ("False", "OldPause")),
            ("bullmq:6.0.0", ("True", "Supported")),
            ("bullmq-pro:7.1", ("True", "Supported")),
        ],
    )
    def test_versions(self, version: str | None, expected: tuple[str, str]) -> None:
        status = state.connected(QueueStatus(), snapshot(version=version), True, None, 1, NOW)
        assert self.conditions(status)["Compatible"] == expected

    def test_a_pause_of_old_versions(self) -> None:
        assert snapshot(paused=True, version="bullmq:5.0.0").old_pause
        assert not snapshot(paused=True).old_pause
        assert not snapshot(version="bullmq:5.0.0").old_pause
