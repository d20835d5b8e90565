"""Proof that the machine of ``test_decide_machine.py`` can fail: operators with one bug each, all of them seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, Verbosity
from hypothesis.stateful import run_state_machine_as_test

from claudejobs.api.categories import Category
from claudejobs.api.status import Phase as JobPhase
from claudejobs.reconcile import report
from claudejobs.reconcile.decide import Decision, Seen, decide
from claudejobs.reconcile.endings import Ending
from claudejobs.settings import Settings

from .model.world import KILLED, Cut, Decide, World
from .test_decide_machine import SETTINGS, JobMachine, profile

Focus = dict[str, Any]
"""See ``JobMachine.focus``."""


def _with_spec(seen: Seen, **fields: Any) -> Seen:
    return replace(seen, job=replace(seen.job, spec=seen.job.spec.model_copy(update=fields)))


def _with_status(seen: Seen, **fields: Any) -> Seen:
    return replace(seen, job=replace(seen.job, status=seen.job.status.model_copy(update=fields)))


def takes_an_unseen_pod_for_gone(seen: Seen, settings: Settings) -> Decision:
    return replace(decide(seen, settings), confirm_gone=None)


def takes_a_deleted_pod_for_gone(seen: Seen, settings: Settings) -> Decision:
    decision = decide(replace(seen, pods=[p for p in seen.pods if p.deleting_since is None]), settings)
    return replace(decision, confirm_gone=None)


def starts_while_suspended(seen: Seen, settings: Settings) -> Decision:
    return decide(_with_spec(seen, suspend=False), settings)


def ignores_cancel_without_a_pod(seen: Seen, settings: Settings) -> Decision:
    return decide(seen if seen.job.status.open_attempt else _with_spec(seen, cancel=False), settings)


def revives_finished_jobs(seen: Seen, settings: Settings) -> Decision:
    return decide(_with_status(seen, phase=JobPhase.PENDING) if seen.job.status.phase.terminal else seen, settings)


def retries_for_ever(seen: Seen, settings: Settings) -> Decision:
    decision = decide(seen, settings)
    status = decision.status
    if status is None or status.phase is not JobPhase.FAILED or not status.attempts:
        return decision
    again = {"phase": JobPhase.BACKOFF, "next_attempt_time": seen.now, "completion_time": None}
    return replace(decision, status=status.model_copy(update=again))


def skips_a_number_that_is_taken(seen: Seen, settings: Settings) -> Decision:
    """Does not adopt the pod that it made before it died, and makes another."""
    pods = [p for p in seen.pods if p.attempt <= seen.job.status.attempt]
    decision = decide(replace(seen, pods=pods), settings)
    taken = any(p.attempt == decision.create for p in seen.pods)
    return replace(decision, create=decision.create + 1) if decision.create and taken else decision


def writes_the_status_of_a_pod_without_making_it(seen: Seen, settings: Settings) -> Decision:
    """Waits for ever for a pod that nobody makes."""
    decision = decide(seen, settings)
    return replace(decision, create=None, confirm_gone=None) if not decision.confirm_gone else Decision(after=5.0)


def takes_an_ended_container_for_a_new_one(seen: Seen, settings: Settings) -> Decision:
    pods = [replace(p, started=None) for p in seen.pods]
    running = seen.job.status.phase is JobPhase.RUNNING and not any(p.running or p.terminated for p in pods)
    seen = replace(seen, pods=pods)
    return decide(_with_status(seen, phase=JobPhase.STARTING) if running else seen, settings)


def meets_its_predecessor(seen: Seen, settings: Settings) -> Decision:
    """Makes the next pod when its time has come, whatever is left of the one before."""
    status = seen.job.status
    if status.open_attempt:
        return decide(seen, settings)
    pods = [p for p in seen.pods if p.terminated or p.attempt > status.attempt]
    return replace(decide(replace(seen, pods=pods), settings), confirm_gone=None)


def starts_without_a_slot(seen: Seen, settings: Settings) -> Decision:
    return decide(replace(seen, admitted=True), settings)


def starts_before_its_dependencies(seen: Seen, settings: Settings) -> Decision:
    """Takes a job that does not exist yet for one that has completed and was removed."""
    there = {name: phase for name, phase in seen.dependencies.items() if phase is not None}
    return decide(replace(seen, dependencies=there), settings)


def waits_for_failed_dependencies(seen: Seen, settings: Settings) -> Decision:
    ended = (JobPhase.FAILED, JobPhase.CANCELLED)
    phases = {n: JobPhase.PENDING if phase in ended else phase for n, phase in seen.dependencies.items()}
    return decide(replace(seen, dependencies=phases), settings)


def waits_in_a_circle(seen: Seen, settings: Settings) -> Decision:
    return decide(replace(seen, cycle=()), settings)


def asks_for_dependencies_again(seen: Seen, settings: Settings) -> Decision:
    """Waits, after an attempt, for a job that had completed and was removed since."""
    decision = decide(seen, settings)
    if decision.create is None or all(seen.dependencies.values()):
        return decision
    again = {"phase": JobPhase.PENDING, "reason": "Dependencies"}
    return Decision(status=seen.job.status.model_copy(update=again))


def ignores_the_deadline_of_a_pod(seen: Seen, settings: Settings) -> Decision:
    return decide(_with_spec(seen, active_deadline_seconds=None) if seen.job.status.open_attempt else seen, settings)


def ignores_the_deadline_between_attempts(seen: Seen, settings: Settings) -> Decision:
    return decide(seen if seen.job.status.open_attempt else _with_spec(seen, active_deadline_seconds=None), settings)


def leaves_pods_of_the_past(seen: Seen, settings: Settings) -> Decision:
    """Closes the attempt at the deadline, and has its pod run on."""
    decision = decide(seen, settings)
    if not seen.job.status.open_attempt or not decision.delete_pods or seen.job.spec.active_deadline_seconds is None:
        return decision if not seen.job.status.phase.terminal else replace(decision, delete_pods=())
    late = Ending(Category.TIMEOUT, "out of time")
    return Decision(status=report.finished(seen.job.status, JobPhase.FAILED, late, seen.job, seen.now))


def ignores_reruns(seen: Seen, settings: Settings) -> Decision:
    return decide(_with_spec(seen, rerun=0), settings)


def reruns_for_ever(seen: Seen, settings: Settings) -> Decision:
    """Does not remember which rerun it has acted on."""
    decision = decide(seen, settings)
    if decision.status is None or decision.status.rerun == seen.job.status.rerun:
        return decision
    return replace(decision, status=decision.status.model_copy(update={"rerun": seen.job.status.rerun}))


def reruns_with_spent_attempts(seen: Seen, settings: Settings) -> Decision:
    """Counts what was before the rerun."""
    decision = decide(seen, settings)
    if decision.status is None or decision.status.rerun == seen.job.status.rerun:
        return decision
    forgiven = {"attempts_forgiven": seen.job.status.attempts_forgiven}
    return replace(decision, status=decision.status.model_copy(update=forgiven))


def reruns_what_was_cancelled(seen: Seen, settings: Settings) -> Decision:
    status, asked = seen.job.status, seen.job.spec.rerun
    if status.phase is JobPhase.CANCELLED and asked > status.rerun:
        return Decision(status=report.rerun(status, seen.job))
    return decide(seen, settings)


def forgets_a_rerun_that_is_early(seen: Seen, settings: Settings) -> Decision:
    """Takes a rerun that is asked for while the job still runs for done."""
    decision = decide(seen, settings)
    if decision.status is None or seen.job.status.phase.terminal:
        return decision
    return replace(decision, status=decision.status.model_copy(update={"rerun": seen.job.spec.rerun}))


def suspension_spends_attempts(seen: Seen, settings: Settings) -> Decision:
    """Goes on by itself after the pod was stopped."""
    decision = decide(seen, settings)
    if decision.status is None or decision.status.phase is not JobPhase.SUSPENDED:
        return decision
    return replace(decision, status=decision.status.model_copy(update={"phase": JobPhase.PENDING}))


def gives_up_pods_that_are_held_back(seen: Seen, settings: Settings) -> Decision:
    return decide(replace(seen, pods=[replace(pod, held=False) for pod in seen.pods]), settings)


def takes_a_reserved_pod_for_gone(seen: Seen, settings: Settings) -> Decision:
    """Closes the attempt whose pod does not know of the job yet."""
    reserved = seen.job.status.reason == report.RESERVED
    return decide(_with_status(seen, reason="Starting") if reserved else seen, settings)


def forgets_a_reservation(seen: Seen, settings: Settings) -> Decision:
    """Leaves the pod when the job is not to run, while a late request may still give it to the job."""
    decision = decide(seen, settings)
    if not decision.take_back:
        return decision
    return Decision(status=report.unreserved(seen.job.status), after=0.0)


def starts_cold_beside_a_reservation(seen: Seen, settings: Settings) -> Decision:
    decision = decide(seen, settings)
    return (
        replace(decision, hand_over=None, create=seen.job.status.attempt, status=seen.job.status)
        if decision.hand_over
        else decision
    )


class _Impure:
    """Decides otherwise each time it is asked."""

    __name__ = "depends_on_more_than_what_is_seen"

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, seen: Seen, settings: Settings) -> Decision:
        self._asked += 1
        return replace(decide(seen, settings), after=float(self._asked))


PLAIN: Focus = {"deadline": None, "depends_on": [], "hindrance": None, "budget": None, "ttl": None}
RETRY: Focus = {**PLAIN, "attempts": None, "delay": 10, "end": KILLED}
RERUN: Focus = {**PLAIN, "attempts": 1, "delay": 0, "end": KILLED, "bold": True}
DEPENDENT: Focus = {**RETRY, "depends_on": ["first"]}
TIMED: Focus = {**PLAIN, "deadline": 20}
GATED: Focus = {**PLAIN, "gating": True}
WARM: Focus = {**PLAIN, "warm": 2, "bold": True}

BUGS: list[tuple[Decide, str, Focus]] = [
    (takes_an_unseen_pod_for_gone, "was taken for lost", PLAIN),
    (takes_a_deleted_pod_for_gone, "may still run|run at the same time|failed became", PLAIN),
    (starts_while_suspended, "after the suspension was seen|does not come to rest", PLAIN),
    (ignores_cancel_without_a_pod, "after the cancel was seen", RETRY | {"bold": True}),
    (revives_finished_jobs, "changed after the job's end|at its end|is open", {}),
    (retries_for_ever, "are allowed", RERUN),
    (skips_a_number_that_is_taken, "may still run|follows attempt", PLAIN),
    (writes_the_status_of_a_pod_without_making_it, "does not end|does not come to rest", {}),
    (takes_an_ended_container_for_a_new_one, "went back to its start", {}),
    (_Impure(), "the same view, and another decision", {}),
    (starts_without_a_slot, "made without a slot", PLAIN),
    (suspension_spends_attempts, "does not come to rest", PLAIN),
    (starts_before_its_dependencies, "before .* completed", DEPENDENT | {"neighbours": "absent"}),
    (waits_for_failed_dependencies, "does not come to rest", DEPENDENT | {"neighbours": "Failed"}),
    (waits_in_a_circle, "does not come to rest", DEPENDENT | {"neighbours": "in a circle"}),
    (asks_for_dependencies_again, "does not come to rest", DEPENDENT | {"neighbours": "Completed"}),
    (ignores_the_deadline_of_a_pod, "does not come to rest", TIMED),
    (ignores_the_deadline_between_attempts, "after the deadline|does not come to rest", TIMED),
    (leaves_pods_of_the_past, "does not come to rest|does not rest at its end", TIMED),
    (ignores_reruns, "does not come to rest|does not rest at its end", RERUN),
    (reruns_for_ever, "changed after the job's end", RERUN),
    (reruns_with_spent_attempts, "does not count anew", RERUN),
    (reruns_what_was_cancelled, "that has Cancelled runs again", PLAIN | {"bold": True}),
    (gives_up_pods_that_are_held_back, "while Kueue held its pod back", GATED),
    (takes_a_reserved_pod_for_gone, "was taken for lost", WARM),
    (starts_cold_beside_a_reservation, "is open", WARM),
    (forgets_a_rerun_that_is_early, "rerun changed before the job's end", RERUN),
]


@pytest.mark.parametrize(("bug", "seen_as", "focus"), BUGS, ids=[getattr(bug, "__name__", "") for bug, *_ in BUGS])
def test_the_machine_sees_an_operator_that(bug: Decide, seen_as: str, focus: Focus) -> None:
    class Buggy(JobMachine):
        decide = staticmethod(bug)

    Buggy.focus = focus
    generate = profile(1500, phases=[Phase.generate], report_multiple_bugs=False, verbosity=Verbosity.quiet)
    with pytest.raises(AssertionError, match=seen_as):
        run_state_machine_as_test(Buggy, settings=generate)  # type: ignore[no-untyped-call]


def hindered(decide: Decide) -> World:
    """A job whose first pod is given up because its container cannot be made, and stays where it is."""
    world = World(SETTINGS, {"retry": {"backoff": {"delaySeconds": 0}}}, decide)
    world.hindrance = ("CreateContainerError", "context deadline exceeded")
    for _ in range(12):
        for pod in list(world.api.pods.values()):
            world.process(pod).hung = "deletionTimestamp" in pod["metadata"]
            world.take_its_course(pod)
        world.pass_time(20)
        assert world.operator
        world.operator.hear()
        world.reconcile()
    return world


def test_the_world_sees_two_attempts_meet() -> None:
    with pytest.raises(AssertionError, match="pod 2 was made while pod 1 may still run"):
        hindered(meets_its_predecessor)
    world = hindered(decide)
    assert (world.api.created, world.status.reason) == ([1], "PodDeleting")
    world.calm()
    assert world.status.phase is JobPhase.COMPLETED
    assert world.api.created == [1, 2]


def suspended_in_a_hand_over(decide: Decide) -> World:
    """A job that is suspended, and goes on, while the patch that gives it a warm pod is still on its way."""
    world = World(SETTINGS, {"terminationGracePeriodSeconds": 5}, decide)
    world.add_warm()

    def look(cut: Cut | None = None) -> None:
        assert world.operator
        world.operator.hear()
        world.reconcile(cut)

    look()
    assert world.status.reason == report.RESERVED
    look(Cut(3, "late"))
    assert world.api.late
    world.set_spec(suspend=True)
    look()
    world.late_requests()
    world.set_spec(suspend=False)
    return world


def test_the_world_sees_a_pod_given_to_a_job_that_has_given_it_up() -> None:
    with pytest.raises(AssertionError, match="was given to a job that does not name it"):
        suspended_in_a_hand_over(forgets_a_reservation)
    world = suspended_in_a_hand_over(decide)
    assert world.api.handed_over == 0
    world.calm()
    assert world.status.phase is JobPhase.COMPLETED
    assert world.api.created == [1]
