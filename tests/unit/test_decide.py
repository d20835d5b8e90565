"""What the operator does, one behaviour at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import Outcome, RunnerResult
from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile import report
from claudejobs.reconcile.decide import Decision, PodDeletion, Seen, decide
from claudejobs.reconcile.views import LiveReport, PodView

from .model.objects import (
    NOW,
    RUNNING,
    STARTING,
    Json,
    ago,
    attempt,
    ended_status,
    failed_attempt,
    job_view,
    make_settings,
    parsed,
    pod_object,
    result_json,
    running_pod,
    seen,
    stamp,
    status_with,
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


def test_a_pod_that_never_started_says_what_was_waited_for_and_what_to_do() -> None:
    status = written(seen(job_view(None, STARTING), pending_pod(601)))
    assert status.attempts[0].message == (
        "pod job-1 started no container on node node-a (waited 600 s, the operator's START_TIMEOUT); kubectl -n team "
        "events --for pod/job-1 says why; where it only needs longer, raise START_TIMEOUT"
    )


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


# A job that is to stop.


@pytest.mark.parametrize(("field", "verb"), [("cancel", "cancelled"), ("suspend", "suspended")])
def test_the_pod_of_a_job_that_is_to_stop_is_deleted_with_the_grace_of_the_spec(field: str, verb: str) -> None:
    made = decision(seen(job_view({field: True, "terminationGracePeriodSeconds": 7}, RUNNING), running_pod()))
    assert made.delete_pods == (PodDeletion("job-1", "pod-uid-1", 7),)
    assert made.status is not None
    assert made.status.phase is Phase.RUNNING
    assert (made.status.reason, made.status.message) == ("Stopping", f"{verb}: pod job-1 is stopping")


def test_a_pod_that_is_stopping_is_not_deleted_again() -> None:
    """deletionTimestamp is when the grace period ends."""
    pod = running_pod(deletionTimestamp=stamp(NOW + timedelta(seconds=10)))
    made = decision(seen(job_view({"cancel": True}, RUNNING), pod))
    assert (made.delete_pods, made.after) == ((), 30)


def test_a_cancelled_pod_that_does_not_go_is_removed_by_force() -> None:
    pod = running_pod(deletionTimestamp=stamp(ago(21)))
    made = decision(seen(job_view({"cancel": True}, RUNNING), pod))
    assert made.delete_pods == (PodDeletion("job-1", "pod-uid-1", 0),)


def test_a_suspended_pod_that_does_not_go_is_waited_for() -> None:
    """By force it might still run on a node that is cut off when the job is resumed: two attempts would meet."""
    pod = running_pod(deletionTimestamp=stamp(ago(600)))
    made = decision(seen(job_view({"suspend": True}, RUNNING), pod))
    assert made.delete_pods == ()
    assert made.status is not None
    assert made.status.reason == "Stopping"


CANCELLED = ended_status(35, result_json("cancelled", category="cancelled", cost_usd=0.25))


def test_a_stopped_pod_makes_a_cancelled_job_cancelled() -> None:
    status = written(seen(job_view({"cancel": True}, RUNNING), parsed(pod_object(1, CANCELLED))))
    assert (status.phase, status.reason, status.cost_usd) == (Phase.CANCELLED, "cancelled", 0.25)
    assert (status.attempts[0].outcome, status.attempts[0].exit_code) == ("cancelled", 35)
    assert condition(status, "Succeeded") == ("False", "Cancelled")


def test_a_pod_that_completes_as_the_cancel_arrives_has_completed() -> None:
    pod = parsed(pod_object(1, ended_status(0, result_json(text="done"))))
    assert written(seen(job_view({"cancel": True}, RUNNING), pod)).phase is Phase.COMPLETED


def test_a_failure_under_cancel_is_a_cancellation() -> None:
    assert written(seen(job_view({"cancel": True}, RUNNING), failing_pod(Category.NETWORK))).phase is Phase.CANCELLED


def test_a_stopped_pod_makes_a_suspended_job_suspended_without_spending_an_attempt() -> None:
    status = written(seen(job_view({"suspend": True}, RUNNING), parsed(pod_object(1, CANCELLED))))
    assert (status.phase, status.attempts[0].outcome, status.attempts[0].category) == (
        Phase.SUSPENDED,
        "suspended",
        None,
    )
    assert status.next_attempt_time is None


def test_a_real_failure_under_suspend_counts() -> None:
    status = written(seen(job_view({"suspend": True}, RUNNING), failing_pod(Category.NETWORK)))
    assert (status.phase, status.attempts[0].outcome) == (Phase.BACKOFF, "failed")


def test_a_suspended_job_in_backoff_waits_and_keeps_its_backoff() -> None:
    until = NOW + timedelta(seconds=30)
    backoff = status_with(failed_attempt(1, "network"), phase="Backoff", nextAttemptTime=stamp(until))
    held = written(seen(job_view({"suspend": True}, backoff)))
    assert (held.phase, held.next_attempt_time) == (Phase.SUSPENDED, until)
    resumed = decision(seen(job_view(None, held)))
    assert (resumed.create, resumed.after) == (None, 30)


def test_a_job_resumed_while_its_pod_stops_was_suspended_all_the_same() -> None:
    """The stop was the operator's doing: nobody else deleted the pod, and no attempt is spent."""
    stopping = written(seen(job_view({"suspend": True}, RUNNING), running_pod()))
    resumed = job_view(None, stopping)
    going = running_pod(deletionTimestamp=stamp(NOW + timedelta(seconds=10)))
    assert decision(seen(resumed, going)).status == stopping
    ended = written(seen(resumed, parsed(pod_object(1, CANCELLED))))
    assert (ended.phase, ended.attempts[0].outcome) == (Phase.SUSPENDED, "suspended")
    assert decision(seen(job_view(None, ended))).create == 2


def test_a_pod_deleted_by_hand_is_waited_for() -> None:
    made = decision(seen(job_view(None, RUNNING), running_pod(deletionTimestamp=stamp(NOW))))
    assert (made.create, made.delete_pods) == (None, ())
    assert made.status is not None
    assert made.status.reason == "PodDeleting"


# An attempt that ends.


def test_a_completed_pod_completes_the_job() -> None:
    text = result_json(text="done", num_turns=3, cost_usd=0.5, usage={"input_tokens": 7, "output_tokens": 9})
    status = written(seen(job_view(None, RUNNING), parsed(pod_object(1, ended_status(0, text)))))
    assert (status.phase, status.progress, status.cost_usd) == (Phase.COMPLETED, 100, 0.5)
    assert status.completion_time == NOW
    assert status.result is not None
    assert (status.result.text, status.result.usage.output_tokens) == ("done", 9)
    assert (status.attempts[0].outcome, status.attempts[0].end_time) == ("completed", ago(1))
    assert condition(status, "Finished") == ("True", "Completed")
    assert condition(status, "Succeeded") == ("True", "Completed")


@pytest.mark.parametrize("category", [c for c in Category if c is not Category.CANCELLED])
def test_what_follows_from_a_category(category: Category) -> None:
    policy = POLICIES[category]
    status = written(seen(job_view(None, RUNNING), failing_pod(category)))
    assert status.attempts[0].category == status.reason == category
    if not policy.retriable:
        assert status.phase is Phase.FAILED
        return
    assert status.phase is Phase.BACKOFF
    assert status.next_attempt_time is not None
    assert status.next_attempt_time >= NOW + timedelta(seconds=policy.backoff_seconds)
    # One more of its kind ends the job only when it spends one of the attempts.
    spent = [failed_attempt(n, "network") for n in (1, 2)]
    last = status_with(*spent, attempt(3), phase="Running")
    after_two = written(seen(job_view(None, last), failing_pod(category, 3)))
    assert after_two.phase is (Phase.FAILED if policy.spends_attempt else Phase.BACKOFF)


def test_a_pod_that_vanished_is_lost_once_the_api_server_confirms_it() -> None:
    made = decision(seen(job_view(None, RUNNING)))
    assert made.confirm_gone == "job-1"
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.BACKOFF, "pod_lost")


def test_a_pod_that_vanished_after_its_result_was_logged_has_completed() -> None:
    live = LiveReport(result=RunnerResult(outcome=Outcome.COMPLETED, text="done"))
    made = decision(seen(job_view(None, RUNNING), live=live))
    assert made.confirm_gone == "job-1"
    assert made.status is not None
    assert made.status.phase is Phase.COMPLETED


def test_a_cut_answer_is_waited_for_until_the_log_is_read() -> None:
    pod = parsed(pod_object(1, ended_status(0, result_json(text="do", truncated=True))))
    job = job_view(None, RUNNING)
    made = decision(seen(job, pod, live=LiveReport()))
    assert (made.status, made.after) == (job.status, 9)
    whole = RunnerResult(outcome=Outcome.COMPLETED, text="done, and at length")
    for live, text in ((LiveReport(result=whole), whole.text), (LiveReport(drained=True), "do")):
        status = written(seen(job, pod, live=live))
        assert status.result is not None
        assert status.result.text == text
    assert written(seen(job, pod, now=NOW + timedelta(seconds=10))).phase is Phase.COMPLETED


# Between attempts.


def in_backoff(*attempts: Json, left: float = -1, **values: Any) -> Json:
    until = stamp(NOW + timedelta(seconds=left))
    return status_with(*attempts, phase="Backoff", nextAttemptTime=until, **values)


def test_the_next_attempt_waits_for_its_time() -> None:
    made = decision(seen(job_view(None, in_backoff(failed_attempt(1, "network"), left=12))))
    assert (made.create, made.after) == (None, 12)


def test_waiting_costs_no_write_however_long_the_message_is() -> None:
    pod = parsed(pod_object(1, ended_status(22, result_json("failed", category="network", message="x" * 3000))))
    backoff = written(seen(job_view(None, RUNNING), pod))
    assert decision(seen(job_view(None, backoff))).status == backoff


def test_the_next_attempt_starts_when_its_time_has_come() -> None:
    made = decision(seen(job_view(None, in_backoff(failed_attempt(1, "network", costUSD=0.5)))))
    assert made.create == 2
    assert made.status is not None
    assert (made.status.attempt, made.status.next_attempt_time, made.status.pod_name) == (2, None, "job-2")
    assert (made.status.cost_usd, made.status.progress) == (0.5, 0)


def test_a_new_attempt_has_not_started_yet() -> None:
    ran = written(seen(job_view(None, STARTING), running_pod()))
    assert condition(ran, "Started") == ("True", "Running")
    backoff = written(seen(job_view(None, ran), failing_pod(Category.NETWORK)))
    again = written(seen(job_view(None, backoff), now=NOW + timedelta(seconds=60)))
    assert again.attempt == 2
    assert condition(again, "Started") == ("False", "Starting")


def test_a_job_whose_time_has_come_and_that_is_queued_has_no_next_attempt_time() -> None:
    status = written(seen(job_view(None, in_backoff(failed_attempt(1, "network"))), admitted=False))
    assert (status.phase, status.next_attempt_time) == (Phase.QUEUED, None)


def test_a_job_cancelled_in_backoff_ends_at_once() -> None:
    made = decision(seen(job_view({"cancel": True}, in_backoff(failed_attempt(1, "network"), left=600))))
    assert made.create is None
    assert made.status is not None
    assert (made.status.phase, made.status.next_attempt_time) == (Phase.CANCELLED, None)
    assert made.status.attempts[0].outcome == "failed"


def test_a_spent_budget_ends_the_job_without_waiting_for_a_next_attempt() -> None:
    job = job_view({"claude": {"maxBudgetUSD": 1}}, RUNNING)
    status = written(seen(job, failing_pod(Category.NETWORK, cost_usd=1.0)))
    assert (status.phase, status.reason) == (Phase.FAILED, "budget_exceeded")
    assert status.attempts[0].category == "network"


def test_a_budget_spent_by_suspended_attempts_ends_the_job() -> None:
    suspended = attempt(endTime=stamp(NOW), outcome="suspended", costUSD=1.0)
    job = job_view({"claude": {"maxBudgetUSD": 1}}, status_with(suspended, phase="Suspended"))
    assert written(seen(job)).reason == "budget_exceeded"


def test_a_job_is_not_started_more_often_than_its_status_can_tell() -> None:
    """Suspended attempts are not counted against the job, but the API server takes no list of more than 100."""
    many = [attempt(n, endTime=stamp(NOW), outcome="suspended") for n in range(1, 101)]
    made = decision(seen(job_view(None, status_with(*many, phase="Suspended"))))
    assert made.create is None
    assert made.status is not None
    assert (made.status.phase, made.status.reason) == (Phase.FAILED, "invalid_request")


@pytest.mark.parametrize("open_first", [True, False])
def test_a_status_that_is_behind_the_pods_gets_no_impossible_attempts(open_first: bool) -> None:
    """A pod of a later attempt proves that the job's view is old; what is decided from it will not be written."""
    first = attempt() if open_first else failed_attempt(1, "network")
    job = job_view(None, status_with(first, phase="Running" if open_first else "Backoff"))
    made = decision(seen(job, running_pod(1 if open_first else 3), running_pod(2 if open_first else 3)))
    assert made.status is not None
    numbers = [one.attempt for one in made.status.attempts]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(one.outcome for one in made.status.attempts[:-1])


# After the end.


def ended_job(seconds_ago: float, spec: Json | None = None) -> Any:
    done = attempt(endTime=stamp(ago(seconds_ago)), outcome="completed")
    return job_view(spec, status_with(done, phase="Completed", completionTime=stamp(ago(seconds_ago))))


def test_a_finished_job_is_left_as_it_is() -> None:
    job = ended_job(10, {"cancel": True, "suspend": True})
    assert decision(seen(job, parsed(pod_object(1, ended_status(0, result_json()))))) == Decision()


def test_no_pod_of_a_finished_job_is_left_running() -> None:
    assert decision(seen(ended_job(10), running_pod())).delete_pods == (PodDeletion("job-1", "pod-uid-1"),)


def test_a_finished_job_goes_when_its_time_to_live_is_over() -> None:
    assert decision(seen(ended_job(10, {"ttlSecondsAfterFinished": 30}))) == Decision(after=20)
    assert decision(seen(ended_job(30, {"ttlSecondsAfterFinished": 30}))) == Decision(delete_job=True)


def test_the_pod_before_is_asked_for_when_it_is_not_seen() -> None:
    """A new operator may see less than there is; two attempts must not meet for that."""
    job = job_view(None, in_backoff(failed_attempt(1, "network")))
    assert decision(seen(job)).confirm_gone == "job-1"
    assert decision(seen(job, failing_pod(Category.NETWORK))).confirm_gone is None
    assert decision(seen(job_view())).confirm_gone is None


# Warm pods.

RESERVED = status_with(attempt(podName="warm-x"), phase="Starting", reason="Reserved", podName="warm-x")


def test_a_job_names_its_warm_pod_before_the_pod_learns_of_the_job() -> None:
    made = decision(replace(seen(job_view()), warm="warm-x"))
    assert (made.create, made.reserve, made.hand_over) == (None, "warm-x", None)
    assert made.status is not None
    assert (made.status.phase, made.status.attempt, made.status.pod_name) == (Phase.STARTING, 1, "warm-x")
    then = decision(seen(job_view(status=made.status)))
    assert (then.create, then.hand_over, then.status) == (None, "warm-x", None)
    given = running_pod(name="warm-x")
    assert written(seen(job_view(status=made.status), given)).phase is Phase.RUNNING


def test_a_job_that_may_not_start_takes_no_warm_pod() -> None:
    for spec, admitted in (({"suspend": True}, True), ({"cancel": True}, True), ({}, False)):
        assert decision(replace(seen(job_view(spec), admitted=admitted), warm="warm-x")).reserve is None


@pytest.mark.parametrize("spec", [{"cancel": True}, {"suspend": True}])
def test_a_reservation_is_taken_back_when_the_job_is_not_to_run(spec: Json) -> None:
    reserved = job_view(spec, RESERVED)
    back = decision(seen(reserved))
    assert (back.take_back, back.hand_over, back.status) == (reserved.status.pod_name, None, None)
    status = report.unreserved(reserved.status)
    assert (status.attempt, status.attempts, status.pod_name, status.start_time) == (0, [], None, None)
    after = written(seen(job_view(spec, status)))
    assert after.phase is (Phase.CANCELLED if "cancel" in spec else Phase.SUSPENDED)
    # Should the patch have been under way, the pod goes.
    late = decision(seen(job_view(spec, after), running_pod(name="warm-x")))
    assert [deletion.name for deletion in late.delete_pods] == ["warm-x"]
