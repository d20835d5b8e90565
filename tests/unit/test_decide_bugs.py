"""Proof that the machine of ``test_decide_machine.py`` can fail: operators with one bug each, all of them seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, Verbosity
from hypothesis.stateful import run_state_machine_as_test

from claudejobs.api.status import Phase as JobPhase
from claudejobs.reconcile.decide import Decision, Seen, decide
from claudejobs.settings import Settings

from .model.world import Decide, World
from .test_decide_machine import SETTINGS, JobMachine, profile


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


def ignores_cancel_in_backoff(seen: Seen, settings: Settings) -> Decision:
    return decide(_with_spec(seen, cancel=False) if seen.job.status.phase is JobPhase.BACKOFF else seen, settings)


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


class _Impure:
    """Decides otherwise each time it is asked."""

    __name__ = "depends_on_more_than_what_is_seen"

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, seen: Seen, settings: Settings) -> Decision:
        self._asked += 1
        return replace(decide(seen, settings), after=float(self._asked))


BUGS: list[tuple[Decide, str]] = [
    (takes_an_unseen_pod_for_gone, "was taken for lost"),
    (takes_a_deleted_pod_for_gone, "may still run|run at the same time|failed became"),
    (starts_while_suspended, "after the suspension was seen|does not come to rest"),
    (ignores_cancel_in_backoff, "after the cancel was seen"),
    (revives_finished_jobs, "changed after the job's end|at its end|is open"),
    (retries_for_ever, "are allowed"),
    (skips_a_number_that_is_taken, "may still run|follows attempt"),
    (writes_the_status_of_a_pod_without_making_it, "does not end|does not come to rest"),
    (takes_an_ended_container_for_a_new_one, "went back to its start"),
    (_Impure(), "the same view, and another decision"),
]


@pytest.mark.parametrize(("bug", "seen_as"), BUGS, ids=[getattr(bug, "__name__", "") for bug, _ in BUGS])
def test_the_machine_sees_an_operator_that(bug: Decide, seen_as: str) -> None:
    class Buggy(JobMachine):
        decide = staticmethod(bug)

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
