"""Jobs whose pods Kueue holds back, lets go, and takes back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile.decide import Decision, PodDeletion, decide
from claudejobs.reconcile.pod import build_pod
from claudejobs.reconcile.starting import hindrance_of
from claudejobs.reconcile.views import JobView, PodView

from .model.objects import (
    NOW,
    RUNNING,
    STARTING,
    Json,
    ago,
    attempt,
    ended_status,
    failed_attempt,
    job_object,
    job_view,
    make_settings,
    parsed,
    pod_object,
    result_json,
    running_status,
    seen,
    stamp,
    status_with,
)

SETTINGS = make_settings(start_timeout=600, retry_attempts=3, max_disruptions=2, allowed_priority_classes=["urgent"])
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
HELD = STARTING | {"startTime": stamp(ago(60))}
PREEMPTED = "Preempted to accommodate a workload (UID: x) due to prioritization in the ClusterQueue"


def gated_pod(
    age: float, gate: str = "kueue.x-k8s.io/admission", queue: str | None = "agents", number: int = 1, **meta: Any
) -> PodView:
    obj = pod_object(number, {"phase": "Pending"}, None, age, **meta)
    obj["spec"]["schedulingGates"] = [{"name": gate}]
    if queue:
        obj["metadata"]["labels"][QUEUE] = queue
    return parsed(obj)


def decision(job: JobView, *pods: PodView, **more: Any) -> Decision:
    return decide(seen(job, *pods, **more), SETTINGS)


def written(job: JobView, *pods: PodView, **more: Any) -> JobStatus:
    status = decision(job, *pods, **more).status
    assert status is not None
    return JobStatus.model_validate(status.model_dump(by_alias=True))


def started(status: JobStatus) -> tuple[str, str]:
    return next((c.status, c.reason) for c in status.conditions if c.type == "Started")


def stop_condition(reason: str, message: str, status: str = "True") -> Json:
    return {"conditions": [{"type": "TerminationTarget", "status": status, "reason": reason, "message": message}]}


# What pods are labelled with.


@pytest.mark.parametrize(
    ("labels", "handed_on"),
    [
        ({QUEUE: "agents", PRIORITY: "urgent"}, {QUEUE: "agents", PRIORITY: "urgent"}),
        ({QUEUE: "agents"}, {QUEUE: "agents"}),
        ({QUEUE: "agents", PRIORITY: "above-all"}, {QUEUE: "agents"}),
        ({PRIORITY: "urgent"}, {}),
        ({QUEUE: "", PRIORITY: "urgent"}, {}),
        (
            {QUEUE: "agents", "kueue.x-k8s.io/pod-group-name": "g", "role": "database", "a.example/b": "c"},
            {QUEUE: "agents"},
        ),
    ],
)
def test_pods_get_the_queue_and_the_priority_of_their_job_and_no_other_label(labels: Json, handed_on: Json) -> None:
    plain = build_pod(job_object(), 1, "s", 0.0, SETTINGS)["metadata"]["labels"]
    pod = build_pod(job_object(labels=labels), 1, "s", 0.0, SETTINGS)
    assert pod["metadata"]["labels"] == plain | handed_on
    assert "schedulingGates" not in pod["spec"]


def test_a_job_cannot_take_the_labels_that_its_pods_are_known_by() -> None:
    labels = {QUEUE: "agents", "claudecode.dev/job": "other", "claudecode.dev/attempt": "7"}
    pod = build_pod(job_object(labels=labels), 1, "s", 0.0, SETTINGS)
    assert pod["metadata"]["labels"]["claudecode.dev/job"] == "job"
    assert pod["metadata"]["labels"]["claudecode.dev/attempt"] == "1"


@pytest.mark.parametrize(("allowed", "refused"), [(["urgent"], False), (["batch"], True), ([], True)])
def test_a_priority_that_jobs_may_not_choose_is_said_to_be_ignored(allowed: list[str], refused: bool) -> None:
    job = JobView.parse(job_object(labels={QUEUE: "agents", PRIORITY: "urgent"}))
    status = decide(seen(job), make_settings(allowed_priority_classes=allowed)).status
    assert status is not None
    told = [condition.message for condition in status.conditions if condition.type == "FieldsIgnored"]
    assert told == ([f"not acted on: metadata.labels[{PRIORITY}]"] if refused else [])


# A pod that is held back.


@pytest.mark.parametrize("age", [6, 601, 10**6])
def test_a_pod_that_is_held_back_has_all_the_time(age: float) -> None:
    made = decision(job_view(None, HELD), gated_pod(age))
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.PENDING, "WaitingForKueue")
    assert made.status.message == "waits in Kueue's LocalQueue agents; kubectl describe workloads -n team says for what"
    assert started(made.status) == ("False", "WaitingForKueue")
    assert (made.after, made.delete_pods, made.status.open_attempt is not None) == (None, (), True)


def test_what_is_held_back_for_a_moment_only_is_not_written() -> None:
    job = job_view(None, HELD)
    made = decision(job, gated_pod(2))
    assert (made.status, made.after) == (job.status, 3)


def test_a_pod_that_kueue_holds_back_without_a_queue_says_so_too() -> None:
    status = written(job_view(None, HELD), gated_pod(60, queue=None))
    assert (status.reason, status.message) == (
        "WaitingForKueue",
        "waits for Kueue; kubectl describe workloads -n team says for what",
    )


def test_gates_of_others_are_no_concern_of_ours() -> None:
    pod = gated_pod(60, "example.com/quota", queue=None)
    assert not pod.held
    assert hindrance_of(pod) is None
    status = written(job_view(None, HELD), gated_pod(601, "example.com/quota", queue=None))
    assert (status.phase, status.reason) == (Phase.FAILED, "unschedulable")


def test_the_deadline_of_a_job_does_not_begin_while_its_first_pod_is_held_back() -> None:
    job = job_view({"activeDeadlineSeconds": 30}, HELD)
    for age in (2, 60):
        made = decision(job, gated_pod(age))
        assert made.delete_pods == ()
    status = written(job, gated_pod(60))
    assert (status.phase, status.start_time) == (Phase.PENDING, None)
    let_go = written(job_view({"activeDeadlineSeconds": 30}, status), parsed(pod_object(1, {}, None, 60)))
    assert let_go.start_time == NOW


def test_the_deadline_of_a_job_that_has_run_goes_on_while_its_next_pod_is_held_back() -> None:
    again = status_with(
        failed_attempt(1, "preempted", startTime=stamp(ago(90))),
        attempt(2),
        phase="Starting",
        reason="Starting",
        startTime=stamp(ago(90)),
    )
    job = job_view({"activeDeadlineSeconds": 100}, again)
    made = decision(job, gated_pod(60, number=2))
    assert (made.delete_pods, made.after) == ((), 10)
    late = decision(job_view({"activeDeadlineSeconds": 80}, again), gated_pod(60, number=2))
    assert late.delete_pods == (PodDeletion("job-2", "pod-uid-2", 15),)


# A pod that is let go.


def test_the_start_timeout_counts_from_the_moment_at_which_the_pod_is_let_go() -> None:
    held = written(job_view(None, HELD), gated_pod(5000))
    made = decision(job_view(None, held), parsed(pod_object(1, {"phase": "Pending"}, None, 5000)))
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.STARTING, "Starting")
    assert made.status.attempts[0].admitted_time == NOW
    assert started(made.status) == ("False", "Starting")
    later = decision(
        job_view(None, made.status),
        parsed(pod_object(1, {"phase": "Pending"}, None, 5000)),
        now=NOW + timedelta(seconds=599),
    )
    assert later.status is not None
    assert (later.status.phase, later.after) == (Phase.STARTING, 1)
    late = written(
        job_view(None, made.status),
        parsed(pod_object(1, {"phase": "Pending"}, None, 5000)),
        now=NOW + timedelta(seconds=601),
    )
    assert (late.phase, late.reason) == (Phase.FAILED, "unschedulable")


def test_a_job_that_is_seen_only_when_its_pod_runs_has_begun_when_the_pod_did() -> None:
    held = written(job_view(None, HELD), gated_pod(5000))
    status = written(job_view(None, held), parsed(pod_object(1, running_status(50), age=5000)))
    assert (status.phase, status.start_time) == (Phase.RUNNING, ago(50))
    assert status.attempts[0].admitted_time == ago(50)


def test_a_job_that_is_seen_only_when_its_pod_has_ended_has_begun_all_the_same() -> None:
    held = written(job_view(None, HELD), gated_pod(5000))
    status = written(job_view(None, held), parsed(pod_object(1, ended_status(0, result_json(text="done")), age=5000)))
    assert (status.phase, status.start_time) == (Phase.COMPLETED, ago(50))


# A pod that is held back, and to go.


@pytest.mark.parametrize("field", ["cancel", "suspend"])
def test_a_pod_that_is_held_back_is_deleted_when_its_job_is_to_stop(field: str) -> None:
    made = decision(job_view({field: True}, written(job_view(None, HELD), gated_pod(60))), gated_pod(60))
    assert made.delete_pods == (PodDeletion("job-1", "pod-uid-1", 15),)
    assert made.status is not None
    assert made.status.reason == "Stopping"


@pytest.mark.parametrize(("field", "phase"), [("cancel", Phase.CANCELLED), ("suspend", Phase.SUSPENDED)])
def test_a_deleted_pod_without_a_node_has_ended_whatever_finalizer_holds_it(field: str, phase: Phase) -> None:
    """Kueue's finalizer may stay for ever, where Kueue is gone. Nothing of such a pod can run."""
    held = written(job_view(None, HELD), gated_pod(60))
    going = gated_pod(60, deletionTimestamp=stamp(NOW), finalizers=["kueue.x-k8s.io/managed"])
    status = written(job_view({field: True}, held), going)
    assert (status.phase, status.open_attempt) == (phase, None)


def test_a_deleted_pod_without_a_node_that_others_hold_is_waited_for() -> None:
    going = pod_object(
        1, {"phase": "Pending"}, None, 60, deletionTimestamp=stamp(NOW), finalizers=["example.com/audit"]
    )
    assert not parsed(going).terminated


def test_a_deleted_pod_with_a_node_is_waited_for() -> None:
    going = parsed(pod_object(1, running_status(), deletionTimestamp=stamp(NOW), finalizers=["kueue.x-k8s.io/managed"]))
    assert not going.terminated
    assert written(job_view({"cancel": True}, RUNNING), going).open_attempt is not None


# A pod that is taken back.


@pytest.mark.parametrize(
    ("reason", "message", "category"),
    [
        ("WorkloadEvictedDueToPreempted", PREEMPTED, "preempted"),
        ("StoppedByKueue", PREEMPTED, "preempted"),
        ("WorkloadEvictedDueToClusterQueueStopped", "The ClusterQueue is stopped", "evicted"),
        ("WorkloadDeleted", "Workload is deleted", "evicted"),
    ],
)
def test_a_pod_that_kueue_takes_back_spends_no_attempt(reason: str, message: str, category: str) -> None:
    told = ended_status(35, result_json("cancelled", category="cancelled")) | stop_condition(reason, message)
    job = job_view({"retry": {"maxAttempts": 1}}, RUNNING)
    status = written(job, parsed(pod_object(1, told, deletionTimestamp=stamp(NOW))))
    assert (status.phase, status.reason) == (Phase.BACKOFF, category)
    assert f"Kueue took the pod's place back: {reason}: {message}" in status.message


def test_kueue_is_named_while_a_pod_that_it_takes_back_stops() -> None:
    going = running_status() | stop_condition("WorkloadEvictedDueToPreempted", PREEMPTED)
    status = written(job_view(None, RUNNING), parsed(pod_object(1, going, deletionTimestamp=stamp(NOW))))
    assert (status.phase, status.reason) == (Phase.RUNNING, "PodDeleting")
    assert status.message == f"pod job-1 is being deleted by Kueue (WorkloadEvictedDueToPreempted: {PREEMPTED})"


def test_a_stop_that_was_called_off_is_none() -> None:
    assert parsed(pod_object(1, stop_condition("WorkloadEvictedDueToPreempted", PREEMPTED, "False"))).kueue_stop is None
