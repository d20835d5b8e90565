"""What the operator does, one behaviour at a time."""

from __future__ import annotations

from typing import Any

import pytest

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile.decide import Decision, Seen, decide
from claudejobs.reconcile.views import LiveReport, PodView

from .model.objects import (
    NOW,
    RUNNING,
    STARTING,
    Json,
    ago,
    ended_status,
    job_view,
    make_settings,
    parsed,
    pod_object,
    result_json,
    running_pod,
    seen,
    stamp,
    waiting,
)

SETTINGS = make_settings(start_timeout=600, retry_attempts=3, max_disruptions=2)


def decision(now: Seen) -> Decision:
    return decide(now, SETTINGS)


def written(now: Seen) -> JobStatus:
    status = decision(now).status
    assert status is not None
    return JobStatus.model_validate(status.model_dump(by_alias=True))


def condition(status: JobStatus, kind: str) -> tuple[str, str] | None:
    return next(((c.status, c.reason) for c in status.conditions if c.type == kind), None)


def pending_pod(age: float, status: Json | None = None, node: str | None = "node-a", **meta: Any) -> PodView:
    return parsed(pod_object(1, status or waiting("ContainerCreating"), node, age, **meta))


def failing_pod(category: Category, number: int = 1, **result: Any) -> PodView:
    message = result_json("failed", category=str(category), message="why", **result)
    return parsed(pod_object(number, ended_status(POLICIES[category].exit_code or 1, message)))


# A job that has not run.


def test_a_new_job_gets_the_pod_of_its_first_attempt() -> None:
    made = decision(seen(job_view()))
    assert made.create == 1
    assert made.status is not None
    assert (made.status.phase, made.status.attempt, made.status.pod_name) == (Phase.STARTING, 1, "job-1")
    assert made.status.start_time == NOW
    assert made.after == 600


def test_a_job_beyond_the_limit_is_queued() -> None:
    made = decision(seen(job_view(), admitted=False))
    assert made.create is None
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.QUEUED, "ConcurrencyLimit")


def test_a_suspended_job_does_not_start() -> None:
    made = decision(seen(job_view({"suspend": True})))
    assert made.create is None
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.SUSPENDED, "Suspended")


def test_a_job_cancelled_before_it_ran_ends_at_once() -> None:
    status = written(seen(job_view({"cancel": True, "suspend": True}), admitted=False))
    assert (status.phase, status.message) == (Phase.CANCELLED, "cancelled before it ran")
    assert status.completion_time == NOW
    assert status.attempts == []


def test_an_unreadable_spec_fails_the_job_and_names_the_field() -> None:
    status = written(seen(job_view({"priority": 10**6})))
    assert (status.phase, status.reason) == (Phase.FAILED, "invalid_request")
    assert "spec.priority" in status.message


def test_a_job_being_deleted_is_left_to_the_garbage_collector() -> None:
    job = job_view({"cancel": True}, RUNNING, deletionTimestamp=stamp(NOW))
    assert decision(seen(job, running_pod())) == Decision()


def test_fields_that_are_not_acted_on_are_named_with_the_start() -> None:
    status = written(seen(job_view({"podTemplate": {"annotations": {"sidecar.istio.io/inject": "true"}}})))
    assert condition(status, "FieldsIgnored") == ("True", "NotActedOn")


# A pod that starts.


def test_a_pod_that_no_status_speaks_of_is_adopted() -> None:
    """The operator died between making the pod and writing the status."""
    status = written(seen(job_view(), pending_pod(30)))
    assert (status.phase, status.attempt, status.pod_name) == (Phase.STARTING, 1, "job-1")
    assert status.attempts[0].start_time == ago(30)


def test_a_young_pod_is_left_alone() -> None:
    made = decision(seen(job_view(None, STARTING), pending_pod(2, waiting("ErrImagePull", "not yet"))))
    assert made.status is not None
    assert made.status.reason == "Starting"
    assert made.after == 3


def test_what_keeps_a_pod_from_starting_is_named() -> None:
    made = decision(seen(job_view(None, STARTING), pending_pod(60, waiting("ImagePullBackOff", "no such image"))))
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.STARTING, "ImagePull")
    assert condition(made.status, "Started") == ("False", "ImagePull")
    assert made.after == 540


def test_the_same_trouble_in_new_words_is_not_written_again() -> None:
    job = job_view(None, STARTING)
    first = written(seen(job, pending_pod(60, waiting("ErrImagePull", "manifest unknown"))))
    again = written(seen(job_view(None, first), pending_pod(70, waiting("ImagePullBackOff", "Back-off pulling"))))
    assert again == first


def test_a_running_pod_makes_the_job_running() -> None:
    status = written(seen(job_view(None, STARTING), running_pod()))
    assert (status.phase, status.attempts[0].node_name) == (Phase.RUNNING, "node-a")
    assert condition(status, "Started") == ("True", "Running")


def test_progress_and_step_come_from_the_log_and_never_go_back() -> None:
    job = job_view(None, RUNNING | {"progress": 40})
    status = written(seen(job, running_pod(), live=LiveReport(progress=20, step="Bash: make test")))
    assert (status.progress, status.message) == (40, "Bash: make test")
    assert written(seen(job, running_pod(), live=LiveReport(progress=100))).progress == 99


@pytest.mark.parametrize("age", [60, 7200])
def test_a_container_that_ended_is_not_a_pod_that_does_not_start(age: float) -> None:
    """The kubelet reports the end of the container first, and the pod's phase a moment later."""
    job = job_view(None, RUNNING)
    ended = parsed(pod_object(1, ended_status(22, result_json("failed", category="network"), phase="Running"), age=age))
    assert decision(seen(job, ended)).status == job.status


def test_a_pod_that_ran_is_not_judged_by_the_start_timeout() -> None:
    """A kubelet that was restarted may know nothing of a container for a while."""
    job = job_view(None, RUNNING)
    assert decision(seen(job, parsed(pod_object(1, {"phase": "Running"}, age=7200)))).status == job.status


@pytest.mark.parametrize(
    ("status", "node", "category"),
    [
        (waiting("ImagePullBackOff", "no such image"), "node-a", "image"),
        (waiting("CreateContainerConfigError", 'secret "claude-credentials" not found'), "node-a", "credentials"),
        (waiting("ContainerCreating"), "node-a", "workspace"),
        ({}, None, "unschedulable"),
    ],
)
def test_a_pod_that_does_not_start_in_time_fails_the_job(status: Json, node: str | None, category: str) -> None:
    pod = pending_pod(601, status, node)
    job = job_view(None, STARTING)
    made = decision(seen(job, pod))
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.FAILED, category)
    # Why is written first: the operator may die before the pod is deleted, but not after it and before the reason.
    assert made.delete_pods == ()
    assert decision(seen(job_view(None, made.status), pod)).delete_pods == (PodDeletion("job-1", "pod-uid-1"),)


def test_no_attempt_is_made_before_the_pod_that_was_given_up_is_gone() -> None:
    pod = pending_pod(601, waiting("CreateContainerError", "context deadline exceeded"))
    backoff = decision(seen(job_view(None, STARTING), pod)).status
    assert backoff is not None
    assert (backoff.phase, backoff.reason) == (Phase.BACKOFF, "runner_crash")
    later = NOW + timedelta(seconds=60)
    job = job_view(None, backoff)
    assert decision(seen(job, pod, now=later)).create is None
    assert decision(seen(job, pod, now=later)).delete_pods == (PodDeletion("job-1", "pod-uid-1"),)
    going = pending_pod(601, deletionTimestamp=stamp(NOW))
    made = decision(seen(job, going, now=later))
    assert (made.create, made.delete_pods) == (None, ())
    assert made.status is not None
    assert made.status.reason == "PodDeleting"
    assert decision(seen(job, now=later)).create == 2
