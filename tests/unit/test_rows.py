"""What a job's ProcessState rows say."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from claudejobs.api.process_state import ProcessState, ProcessStatus
from claudejobs.reconcile.rows import closed_row, row_of, rows_of
from claudejobs.reconcile.views import LiveReport

from .model.objects import (
    JOB_UID,
    NOW,
    RUNNING,
    STARTING,
    Json,
    ago,
    attempt,
    failed_attempt,
    job_view,
    stamp,
    status_with,
)

SPEC: Json = {"taskId": "T-1", "userId": "u", "metadata": {"a": 1}}


def row(status: Json, live: LiveReport | None = None, spec: Json | None = None) -> ProcessState:
    job = job_view(SPEC | (spec or {}), status)
    found = row_of(job, job.status, live)
    assert found is not None
    return found


def ended(outcome: str, **values: Any) -> Json:
    return attempt(endTime=stamp(ago(1)), outcome=outcome, **values)


def test_there_is_no_row_before_there_is_anything_to_tell() -> None:
    job = job_view(SPEC)
    assert row_of(job, job.status, None) is None
    assert rows_of(job) == []


def test_a_row_names_whose_attempt_it_is() -> None:
    found = row(STARTING)
    assert (found.process_id, found.job_uid, found.attempt) == (f"{JOB_UID}-1", JOB_UID, 1)
    assert (found.task_id, found.user_id, found.metadata) == ("T-1", "u", {"a": 1})
    assert (found.job_namespace, found.job_name, found.pod_name) == ("team", "job", "job-1")


@pytest.mark.parametrize(
    ("status", "state", "progress"),
    [
        (STARTING, ProcessStatus.STARTING, 0),
        (RUNNING | {"progress": 30}, ProcessStatus.RUNNING, 30),
        (status_with(ended("completed"), phase="Completed", progress=100), ProcessStatus.COMPLETED, 100),
        (status_with(failed_attempt(1, "oom"), phase="Backoff", progress=40), ProcessStatus.FAILED, 40),
        (status_with(ended("cancelled"), phase="Cancelled"), ProcessStatus.CANCELLED, 0),
        (status_with(ended("suspended"), phase="Suspended"), ProcessStatus.CANCELLED, 0),
    ],
)
def test_the_state_follows_the_attempt(status: Json, state: ProcessStatus, progress: int) -> None:
    assert (row(status).status, row(status).progress) == (state, progress)


def test_the_log_is_ahead_of_the_status_but_never_ends_the_row() -> None:
    assert row(RUNNING | {"progress": 30}, LiveReport(progress=60, model="m")).progress == 60
    assert row(RUNNING | {"progress": 30}, LiveReport(progress=100)).progress == 99
    assert row(RUNNING | {"progress": 30}, LiveReport(progress=10)).progress == 30
    assert row(status_with(failed_attempt(1, "oom"), phase="Failed"), LiveReport(progress=60)).progress == 0


def test_a_completed_row_has_the_figures_and_no_error() -> None:
    result = {"numTurns": 4, "usage": {"inputTokens": 7, "outputTokens": 9}}
    found = row(status_with(ended("completed", costUSD=0.5), phase="Completed", result=result))
    assert (found.num_turns, found.input_tokens, found.output_tokens, found.cost_usd) == (4, 7, 9, 0.5)
    assert (found.error, found.error_category, found.end_time) == (None, None, ago(1))


def test_a_failed_row_says_why() -> None:
    found = row(status_with(failed_attempt(1, "oom", "too much memory"), phase="Backoff"))
    assert (found.error, found.error_category) == ("too much memory", "oom")


def test_the_model_is_the_jobs_or_what_the_agent_said() -> None:
    assert row(RUNNING, LiveReport(model="from-the-log")).model == "from-the-log"
    assert row(RUNNING, LiveReport(model="from-the-log"), {"claude": {"model": "opus"}}).model == "opus"


@pytest.mark.parametrize(
    ("phase", "reason", "state"),
    [("Cancelled", "cancelled", ProcessStatus.CANCELLED), ("Failed", "invalid_request", ProcessStatus.FAILED)],
)
def test_a_job_that_never_ran_has_a_row_at_its_end(phase: str, reason: str, state: ProcessStatus) -> None:
    found = row({"phase": phase, "reason": reason, "message": "why", "completionTime": stamp(NOW)})
    assert (found.attempt, found.status, found.error, found.error_category) == (0, state, "why", reason)
    assert found.end_time == NOW


def test_every_attempt_has_its_row() -> None:
    status = status_with(failed_attempt(1, "oom"), attempt(2), phase="Running", progress=20)
    first, second = rows_of(job_view(SPEC, status))
    assert (first.attempt, first.status, second.attempt, second.status) == (1, "failed", 2, "running")
    assert (first.progress, second.progress) == (0, 20)


def test_the_row_of_a_deleted_job_is_closed() -> None:
    found = closed_row(JOB_UID, "team", "job", 1, NOW + timedelta(seconds=1))
    assert (found.process_id, found.status, found.error) == (f"{JOB_UID}-1", "cancelled", "the job was deleted")


def test_a_job_cancelled_between_two_attempts_has_a_row_that_says_so() -> None:
    status = status_with(ended("failed"), phase="Cancelled", reason="cancelled")
    found = row(status)
    assert (found.attempt, found.status, found.error_category) == (2, ProcessStatus.CANCELLED, "cancelled")
    assert found.pod_name is None
    view = job_view(SPEC, status)
    assert [r.status for r in rows_of(view)] == ["failed", "cancelled"]
