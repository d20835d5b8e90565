"""The operator in a world where everything goes wrong: whatever happens, in whatever order, some things must hold.

``model/world.py`` is the world, and checks what must hold with every write. Here are the things that happen, and what
must be true once they stop happening. ``HYPOTHESIS_PROFILE=long`` looks further.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from claudejobs.api.categories import POLICIES
from claudejobs.api.status import Phase as JobPhase
from claudejobs.reconcile.decide import decide

from .model.objects import Json, make_settings
from .model.world import COMPLETED, KILLED, STOPPED, Cut, Decide, End, Operator, World

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
EXAMPLES, STEPS = (20000, 80) if LONG else (500, 50)
SETTINGS = make_settings(retry_attempts=3, max_disruptions=2, start_timeout=60)

HINDRANCES = [
    ("ImagePullBackOff", 'Back-off pulling image "x"'),
    ("CreateContainerConfigError", 'secret "claude-credentials" not found'),
    ("CreateContainerConfigError", "host IP unknown; known addresses: []"),
    ("CreateContainerError", "context deadline exceeded"),
    ("ContainerCreating", ""),
]

ENDS = [
    COMPLETED,
    STOPPED,
    KILLED,
    replace(COMPLETED, logged=False),
    End(137, reason="OOMKilled"),
    End(1),
    *(
        End(policy.exit_code, {"outcome": "failed", "category": str(category), "cost_usd": 0.2})
        for category, policy in POLICIES.items()
        if policy.exit_code is not None and category != "cancelled"
    ),
]

SELDOM = st.sampled_from([False, False, False, True])
WHICH = st.sampled_from([False, False, False, True])
NEIGHBOUR = st.sampled_from(["first", "second"])
PHASE = st.sampled_from(["Completed", "Completed", "Running", "Failed", "Cancelled"])

CUTS = ["none", "crash-before", "crash-after", "error-before", "error-after", "late"]


class JobMachine(RuleBasedStateMachine):
    """Each rule is something that may happen to a job."""

    decide: Decide = staticmethod(decide)
    focus: Mapping[str, Any] = {}
    """What shows a certain bug soon: arguments of ``apply_job`` that are not drawn, ``end`` for how every container
    ends, and ``bold`` for users who do often what they seldom do."""
    world: World
    pooled = False

    @initialize(
        budget=st.sampled_from([None, 0.3]),
        attempts=st.sampled_from([None, 1, 2]),
        delay=st.sampled_from([0, 10]),
        ttl=st.sampled_from([None, None, 0, 30]),
        deadline=st.sampled_from([None, None, 20, 100]),
        depends_on=st.sampled_from([[], [], ["first"], ["first", "second"]]),
        neighbours=st.sampled_from(["absent", "Completed", "Failed", "in a circle"]),
        hindrance=st.sampled_from([None, None, None, *HINDRANCES]),
        gating=st.sampled_from([False, False, True]),
        warm=st.sampled_from([0, 0, 1, 2]),
    )
    def apply_job(self, **drawn: Any) -> None:
        drawn |= self.focus
        spec: Json = {"retry": {"backoff": {"delaySeconds": drawn["delay"]}}, "terminationGracePeriodSeconds": 5}
        if drawn["attempts"]:
            spec["retry"]["maxAttempts"] = drawn["attempts"]
        if drawn["budget"]:
            spec["claude"] = {"maxBudgetUSD": drawn["budget"]}
        if drawn["ttl"] is not None:
            spec["ttlSecondsAfterFinished"] = drawn["ttl"]
        if drawn["deadline"]:
            spec["activeDeadlineSeconds"] = drawn["deadline"]
        if drawn["depends_on"]:
            spec["dependsOn"] = drawn["depends_on"]
        self.world = World(SETTINGS, spec, self.decide)
        self.world.hindrance = drawn["hindrance"]
        self.world.gating = drawn["gating"]
        self.pooled = bool(drawn["warm"])
        for _ in range(drawn["warm"]):
            self.world.add_warm()
        self.world.calm_end = self.focus.get("end", COMPLETED)
        phase, circle = drawn["neighbours"], drawn["neighbours"] == "in a circle"
        for name in drawn["depends_on"] if phase != "absent" else []:
            self.world.neighbour(name, "Running" if circle else phase, ["job"] if circle else [])

    # The operator.

    @rule()
    def reconcile(self) -> None:
        self.world.reconcile()

    @rule(
        call=st.integers(1, 4), how=st.sampled_from(CUTS), meanwhile=st.sampled_from(["", "cancel", "suspend", "pod"])
    )
    def reconcile_cut(self, call: int, how: Any, meanwhile: str) -> None:
        happen: dict[str, Callable[[], None]] = {
            "": lambda: None,
            "cancel": self.cancel,
            "suspend": lambda: self.world.set_spec(suspend=True),
            "pod": lambda: [self.world.start(p) for p in self.world.api.pods.values()] and None,
        }
        self.world.reconcile(Cut(call, how, happen[meanwhile]))

    @rule(seconds=st.sampled_from([0, 0, 1, 6, 30, 61]))
    def hear_all_and_reconcile(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        if self.world.operator:
            self.world.operator.hear()
        self.world.reconcile()

    @rule(seconds=st.sampled_from([0, 1, 6, 61]), end=st.sampled_from(ENDS))
    def pods_and_operator_get_on(self, seconds: float, end: End) -> None:
        for pod in list(self.world.api.pods.values()):
            self.world.take_its_course(pod, self.focus.get("end", end))
        self.hear_all_and_reconcile(seconds)

    @precondition(lambda self: self.world.operator)
    @rule(jobs=st.integers(0, 2), pods=st.integers(0, 3))
    def hear_some(self, jobs: int, pods: int) -> None:
        assert self.world.operator
        self.world.operator.hear(jobs, pods)

    @precondition(lambda self: self.world.operator)
    @rule()
    def resync(self) -> None:
        assert self.world.operator
        self.world.operator.resync()

    @rule(behind=st.integers(0, 3))
    def restart_operator(self, behind: int) -> None:
        self.world.operator = Operator(self.world, behind)

    @precondition(lambda self: self.world.operator and self.world.job and self.world.processes)
    @rule(oldest=WHICH, lines=st.integers(1, 3))
    def log_arrives(self, oldest: bool, lines: int) -> None:
        assert self.world.operator
        self.world.operator.read_log(list(self.world.processes.values())[0 if oldest else -1], lines)

    # The cluster.

    @precondition(lambda self: self.pooled and len(self.world.api.pods) < 4)
    @rule()
    def pool_is_filled(self) -> None:
        self.world.add_warm()

    @precondition(lambda self: self.world.api.late)
    @rule()
    def late_requests_arrive(self) -> None:
        self.world.late_requests()

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH)
    def start_pod(self, oldest: bool) -> None:
        self.world.start(self._pod(oldest))

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH, hindrance=st.sampled_from(HINDRANCES))
    def hinder_pod(self, oldest: bool, hindrance: tuple[str, str]) -> None:
        self.world.hinder(self._pod(oldest), *hindrance)

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH, percent=st.integers(0, 100))
    def agent_works(self, oldest: bool, percent: int) -> None:
        self.world.work(self._pod(oldest), percent)

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH, end=st.sampled_from(ENDS))
    def end_container(self, oldest: bool, end: End) -> None:
        self.world.end(self._pod(oldest), self.focus.get("end", end))

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH)
    def settle_pod(self, oldest: bool) -> None:
        self.world.settle(self._pod(oldest))

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH)
    def evict_pod(self, oldest: bool) -> None:
        self.world.evict(self._pod(oldest))

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH)
    def preempt_pod(self, oldest: bool) -> None:
        self.world.preempt(self._pod(oldest))

    @precondition(lambda self: self.world.gating and self.world.api.pods)
    @rule(oldest=WHICH)
    def kueue_admits(self, oldest: bool) -> None:
        self.world.admit(self._pod(oldest))

    @precondition(lambda self: self.world.gating and self.world.api.pods)
    @rule(oldest=WHICH)
    def kueue_takes_back(self, oldest: bool) -> None:
        self.world.take_back(self._pod(oldest))

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH, hung=st.booleans())
    def node_hangs_or_recovers(self, oldest: bool, hung: bool) -> None:
        self.world.process(self._pod(oldest)).hung = hung

    @rule(seconds=st.sampled_from([1, 6, 30, 61, 700]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.job and "activeDeadlineSeconds" in self.world.job["spec"])
    @rule()
    def agent_never_ends(self) -> None:
        self.world.endless = True

    @precondition(lambda self: self.world.job and self.world.job["spec"].get("dependsOn"))
    @rule(name=NEIGHBOUR, phase=PHASE, depends_on=st.sampled_from([[], [], ["job"], ["second"]]))
    def neighbour_gets_on(self, name: str, phase: str, depends_on: list[str]) -> None:
        self.world.neighbour(name, phase, depends_on)

    @precondition(lambda self: self.world.api.neighbours)
    @rule(oldest=st.booleans())
    def neighbour_is_deleted(self, oldest: bool) -> None:
        self.world.remove_neighbour(list(self.world.api.neighbours)[0 if oldest else -1])

    @rule(admitted=st.booleans())
    def slots_change(self, admitted: bool) -> None:
        self.world.admitted = admitted

    # Users.

    @rule(sure=SELDOM)
    def cancel(self, sure: bool = True) -> None:
        if sure or self.focus.get("bold"):
            self.world.set_spec(cancel=True)

    @rule(value=SELDOM)
    def suspend(self, value: bool) -> None:
        self.world.set_spec(suspend=value)

    @precondition(lambda self: self.world.job and self.world.job["spec"].get("rerun", 0) < 2)
    @rule(sure=SELDOM)
    def rerun(self, sure: bool) -> None:
        if sure or self.focus.get("bold"):
            self.world.rerun()

    @precondition(lambda self: self.world.api.pods)
    @rule(oldest=WHICH, force=st.booleans())
    def delete_pod_by_hand(self, oldest: bool, force: bool) -> None:
        self.world.delete_by_hand(self._pod(oldest), force)

    @precondition(lambda self: self.world.job)
    @rule(sure=SELDOM)
    def delete_job(self, sure: bool) -> None:
        if sure or self.focus.get("bold"):
            self.world.api.remove_job()

    # What must hold besides.

    @invariant()
    def at_most_one_pod_may_run(self) -> None:
        if hasattr(self, "world"):
            live = [p for p in self.world.processes.values() if p.live and not p.excused]
            assert len(live) <= 1, f"pods {[p.attempt for p in live]} run at the same time"

    def teardown(self) -> None:
        """The world turns calm: the job comes to rest, and then, with nothing in its way, to its end.

        An agent that never ends then has a deadline as its only end; and no pod outlives the job's end.
        """
        if not hasattr(self, "world"):
            return
        world = self.world
        world.calm()
        assert world.at_rest(), f"does not come to rest: {self._situation()}"
        if world.job is None:
            return
        world.admitted = True
        world.set_spec(suspend=False)
        for name in world.job["spec"].get("dependsOn", []):
            if name not in world.api.neighbours or world.api.neighbours[name]["status"]["phase"] == "Running":
                world.neighbour(name, "Completed")
        world.calm()
        assert world.job is None or world.status.phase.terminal, f"does not end: {self._situation()}"
        assert world.at_rest(), f"does not rest at its end: {self._situation()}"

    def _pod(self, oldest: bool) -> Json:
        return list(self.world.api.pods.values())[0 if oldest else -1]

    def _situation(self) -> str:
        status = self.world.status
        pods = [(p["metadata"]["name"], p["status"]["phase"]) for p in self.world.api.pods.values()]
        return f"{status.phase} ({status.reason}: {status.message}), pods {pods}"


def profile(examples: int = EXAMPLES, **more: Any) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


TestJob = JobMachine.TestCase
TestJob.settings = profile()


# What a run costs when nothing goes wrong.


@given(seconds=st.lists(st.sampled_from([0, 1, 4, 20]), max_size=12), percent=st.integers(0, 100))
@profile(100)
def test_a_calm_run_costs_three_status_writes(seconds: list[int], percent: int) -> None:
    """Started, running, completed: whatever the pace at which the operator learns of things."""
    world = World(SETTINGS)
    for wait in seconds:
        world.reconcile()
        for pod in list(world.api.pods.values()):
            world.start(pod)
            world.work(pod, percent)
        world.pass_time(wait)
        assert world.operator
        world.operator.hear(1, 1)
    world.calm()
    assert world.status.phase is JobPhase.COMPLETED
    assert world.api.created == [1]
    assert world.api.status_writes <= 3
