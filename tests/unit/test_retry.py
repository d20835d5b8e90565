"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudejobs.api.categories import Category
from claudejobs.api.events import Outcome, RunnerResult
from claudejobs.api.job import Backoff
from claudejobs.api.status import AttemptStatus
from claudejobs.reconcile.endings import Ending
from claudejobs.reconcile.retry import Verdict, backoff_seconds, verdict_on

from .model.objects import Json, attempt, failed_attempt, job_view, make_settings

SETTINGS = make_settings(retry_attempts=3, max_disruptions=2)


def verdict(*categories: str, spec: Json | None = None, retry_after: float | None = None) -> Verdict | timedelta:
    """What follows when attempts have failed with these categories, the last of them just now."""
    attempts = [AttemptStatus.model_validate(failed_attempt(n, c)) for n, c in enumerate(categories, 1)]
    result = RunnerResult(outcome=Outcome.FAILED, retry_after_seconds=retry_after)
    return verdict_on(attempts, Ending(Category(categories[-1]), "it failed", result), job_view(spec), SETTINGS)


def test_the_bound_of_attempts_is_the_operators_when_the_job_does_not_say() -> None:
    assert isinstance(verdict("network", "oom"), timedelta)
    assert verdict("network", "oom", "stalled") == Verdict("it failed (attempt 3 of 3)")
    assert verdict("network", spec={"retry": {"maxAttempts": 1}}) == Verdict("it failed")


def test_disruptions_have_a_bound_of_their_own() -> None:
    assert isinstance(verdict("network", "network", "evicted", "evicted"), timedelta)
    assert verdict("evicted", "preempted", "node_lost") == Verdict("it failed (the cluster disrupted the job 3 times)")


def test_suspended_attempts_count_for_nothing() -> None:
    suspended = AttemptStatus.model_validate(attempt(1, endTime="2026-03-01T12:00:00Z", outcome="suspended"))
    lost = AttemptStatus.model_validate(failed_attempt(5, "pod_lost"))
    found = verdict_on([suspended] * 4 + [lost], Ending(Category.POD_LOST, "gone"), job_view(), SETTINGS)
    assert found == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(None, 30, 30), (5.0, 30, 30), (90.0, 90, 90), (1e12, 3600, 86400)],
)
def test_what_the_model_api_asks_for_is_honoured_within_reason(asked: float | None, least: int, most: int) -> None:
    wait = verdict("rate_limited", retry_after=asked)
    assert isinstance(wait, timedelta)
    assert least <= wait.total_seconds() <= most


@pytest.mark.parametrize(
    ("kind", "failures", "full"),
    [
        ("exponential", 1, 10),
        ("exponential", 2, 20),
        ("exponential", 5, 60),
        ("fixed", 5, 10),
        ("exponential", 999, 60),
    ],
)
def test_the_backoff_doubles_up_to_its_bound(kind: str, failures: int, full: float) -> None:
    backoff = Backoff.model_validate({"type": kind, "delaySeconds": 10, "maxDelaySeconds": 60})
    assert full * 0.8 <= backoff_seconds(backoff, failures, "seed") <= full


@settings(deadline=None, derandomize=True)
@given(seed=st.text(max_size=20), failures=st.integers(1, 50))
def test_the_jitter_is_the_same_for_the_same_attempt(seed: str, failures: int) -> None:
    first = backoff_seconds(Backoff(), failures, seed)
    assert first == backoff_seconds(Backoff(), failures, seed)


def test_the_jitter_spreads_jobs_that_failed_together() -> None:
    assert len({round(backoff_seconds(Backoff(), 1, f"job-{n}"), 3) for n in range(50)}) > 40
