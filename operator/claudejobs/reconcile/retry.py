"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from claudejobs.api.categories import POLICIES
from claudejobs.api.job import Backoff
from claudejobs.api.status import AttemptStatus
from claudejobs.settings import Settings

from .endings import Ending
from .views import JobView

MAX_RETRY_AFTER = 86400
"""Longest Retry-After that is honoured, seconds."""


@dataclass(frozen=True)
class Verdict:
    """No further attempt; ``message`` says why."""

    message: str


def verdict_on(
    attempts: Sequence[AttemptStatus], ending: Ending, job: JobView, settings: Settings
) -> Verdict | timedelta:
    """The time until the next attempt, or why there is none.

    Args:
        attempts: all attempts, the one that just ended included.
        ending: how that one ended; its category is set.
    """
    assert ending.category is not None
    policy = POLICIES[ending.category]
    if not policy.retriable:
        return Verdict(ending.message)
    failures = [a for a in attempts if a.outcome == "failed" and a.category]
    spent = sum(POLICIES[a.category].spends_attempt for a in failures if a.category)
    disruptions = len(failures) - spent
    allowed = job.spec.retry.max_attempts or settings.retry_attempts
    if spent >= allowed:
        return Verdict(f"{ending.message} (attempt {spent} of {allowed})" if allowed > 1 else ending.message)
    if disruptions > settings.max_disruptions:
        return Verdict(f"{ending.message} (the cluster disrupted the job {disruptions} times)")
    delay = 0.0
    if policy.spends_attempt:
        delay = backoff_seconds(job.spec.retry.backoff, spent, f"{job.uid}-{len(attempts)}")
    asked = (ending.result.retry_after_seconds if ending.result else None) or 0.0
    return timedelta(seconds=round(max(delay, policy.backoff_seconds, min(asked, MAX_RETRY_AFTER))))


def backoff_seconds(backoff: Backoff, failures: int, seed: str) -> float:
    """Delay after the ``failures``-th failure, seconds.

    Jitter of up to a fifth keeps jobs that failed together from coming back together. It is drawn from ``seed``,
    so that a decision made twice is the same decision.
    """
    factor = 2 ** min(failures - 1, 30) if backoff.type == "exponential" else 1
    delay = min(backoff.delay_seconds * factor, backoff.max_delay_seconds)
    jitter = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) / 2**32
    return delay * (1 - 0.2 * jitter)
