"""Whether an attempt went on with the session of an earlier one is told, without a write for it alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from claudejobs.api.events import Session
from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile.decide import decide
from claudejobs.reconcile.views import LiveReport

from .model.objects import (
    NOW,
    attempt,
    ended_status,
    failed_attempt,
    job_view,
    make_settings,
    parsed,
    pod_object,
    running_pod,
    seen,
    status_with,
)

SETTINGS = make_settings()


def session(resumed: bool, seq: int = 1) -> Session:
    return Session(seq=seq, time=NOW, session_id="s", resumed=resumed)


def status_of(attempts: int) -> dict[str, Any]:
    before = [failed_attempt(n, "pod_lost") for n in range(1, attempts)]
    return status_with(*before, attempt(attempts), phase="Running", reason="Running", podName=f"job-{attempts}")


def decided(number: int, live: LiveReport | None, pod: Any) -> JobStatus:
    status = decide(seen(job_view(status=status_of(number)), pod, live=live), SETTINGS).status
    assert status is not None
    return status


def test_a_restart_inside_the_pod_is_not_told_as_a_resumed_attempt() -> None:
    live = LiveReport().with_event(session(False)).with_event(session(True, 2))
    assert live.resumed is False


@pytest.mark.parametrize(("resumed", "said"), [(True, "resumed the session"), (False, "began anew")])
def test_a_later_attempt_tells_it_while_it_runs_and_at_its_end(resumed: bool, said: str) -> None:
    running = decided(2, LiveReport().with_event(session(resumed)), running_pod(2))
    assert running.attempts[1].resumed is resumed
    assert said in next(c.message for c in running.conditions if c.type == "Started")
    message = json.dumps({"outcome": "completed", "resumed": resumed})
    ended = decided(2, None, parsed(pod_object(2, ended_status(0, message))))
    assert (ended.phase, ended.attempts[1].resumed) == (Phase.COMPLETED, resumed)
    assert said in ended.message


def test_of_a_first_attempt_it_is_known_at_its_end_only() -> None:
    running = decided(1, LiveReport().with_event(session(False)), running_pod(1))
    assert running.attempts[0].resumed is None
    message = json.dumps({"outcome": "completed", "resumed": False})
    ended = decided(1, None, parsed(pod_object(1, ended_status(0, message))))
    assert (ended.attempts[0].resumed, ended.message) == (False, "the agent has finished")
