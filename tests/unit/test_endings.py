"""Why an attempt ended, from pods as the kubelet and the rest of the cluster leave them."""

from __future__ import annotations

import pytest

from claudejobs.api.categories import EXIT_CODES, Category
from claudejobs.api.events import Outcome, RunnerResult
from claudejobs.reconcile.endings import Ending, ending_of, lost
from claudejobs.reconcile.views import LiveReport

from .model.objects import NOW, Json, disruption, ended_status, parsed, pod_object, result_json, stamp

CANCELLED = result_json("cancelled", category="cancelled")
DONE = result_json(text="done")


def ending(status: Json, live: LiveReport | None = None, **meta: str) -> Ending:
    return ending_of(parsed(pod_object(1, status, **meta)), live)


EVICTED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": 'Usage of EmptyDir volume "workspace" exceeds the limit "2Gi". ',
    **disruption("TerminationByKubelet"),
}
REFUSED = {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: not enough cpu"}
REBOOTED = ended_status(137, "The container could not be located when the pod was terminated", "ContainerStatusUnknown")


@pytest.mark.parametrize(
    ("status", "category", "says"),
    [
        (ended_status(0, DONE), None, ""),
        (ended_status(137, DONE), None, ""),
        (ended_status(137, DONE, reason="OOMKilled"), None, ""),
        (ended_status(35, DONE) | disruption("PreemptionByScheduler"), None, ""),
        (ended_status(20, result_json("failed", category="rate_limited", message="429")), Category.RATE_LIMITED, "429"),
        (ended_status(23, result_json("failed", category="model_error")), Category.MODEL_ERROR, "the model refused"),
        (ended_status(35, CANCELLED), Category.POD_LOST, "told to stop by something other"),
        (ended_status(35, CANCELLED) | disruption("PreemptionByScheduler"), Category.PREEMPTED, "higher priority"),
        (ended_status(35, CANCELLED) | disruption("PreemptionByScheduler", "False"), Category.POD_LOST, "told to stop"),
        (
            ended_status(35, CANCELLED) | disruption("EvictionByEvictionAPI"),
            Category.EVICTED,
            "evicted from node node-a",
        ),
        (ended_status(143) | disruption("EvictionByEvictionAPI"), Category.EVICTED, "evicted from"),
        (ended_status(137) | disruption("DeletionByTaintManager"), Category.NODE_LOST, "node-a went away"),
        (ended_status(137) | disruption("DeletionByPodGC"), Category.NODE_LOST, "node-a went away"),
        ({"phase": "Failed", "reason": "NodeLost"}, Category.NODE_LOST, "node-a went away"),
        (REBOOTED, Category.NODE_LOST, "started anew"),
        (ended_status(255, reason="Unknown"), Category.NODE_LOST, "started anew"),
        (EVICTED, Category.WORKSPACE, 'the limit "2Gi"; raise spec.workspace.emptyDir.sizeLimit'),
        (
            EVICTED | {"message": 'Usage of EmptyDir volume "tmp" exceeds the limit "512Mi". '},
            Category.WORKSPACE,
            'the limit "512Mi"; write to the workspace instead',
        ),
        (
            EVICTED | {"message": "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "},
            Category.WORKSPACE,
            "of containers 1Gi; raise spec.podTemplate.resources.limits[ephemeral-storage], or write less",
        ),
        (
            EVICTED | {"message": 'Container runner exceeded its local ephemeral storage limit "1Mi". '},
            Category.WORKSPACE,
            'limit "1Mi"; raise spec.podTemplate.resources.limits[ephemeral-storage], or write less',
        ),
        (EVICTED | {"message": "The node was low on resource: memory."}, Category.EVICTED, "low on resource"),
        (REFUSED, Category.EVICTED, "node node-a refused the pod: Pod was rejected: not enough cpu"),
        ({"phase": "Failed"}, Category.EVICTED, "it does not say why"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, Category.TIMEOUT, "timeout passed"),
        (ended_status(35, CANCELLED, reason="Error") | {"reason": "DeadlineExceeded"}, Category.TIMEOUT, "timeout"),
        (ended_status(137, reason="OOMKilled"), Category.OOM, "resources.limits.memory"),
        (
            ended_status(33, result_json("failed", category="sdk_crash"), reason="OOMKilled"),
            Category.OOM,
            "resources.limits.memory",
        ),
        (ended_status(24, result_json("failed", category="auth"), reason="OOMKilled"), Category.AUTH, "credentials"),
        (ended_status(137), Category.RUNNER_CRASH, "was killed by signal 9"),
        (ended_status(255), Category.RUNNER_CRASH, "exited with code 255"),
        (ended_status(1, "Traceback (most recent call last):"), Category.RUNNER_CRASH, "exited with code 1"),
        (ended_status(0, "not a result"), Category.RUNNER_CRASH, "exited with code 0"),
        (ended_status(35), Category.RUNNER_CRASH, "exited with code 35"),
    ],
)
def test_an_ending_is_told_from_the_pod(status: Json, category: Category | None, says: str) -> None:
    judged = ending(status)
    assert judged.category == category
    assert says in judged.message
    assert "{" not in judged.message


@pytest.mark.parametrize(("code", "category"), [(k, c) for k, c in EXIT_CODES.items() if c is not Category.CANCELLED])
def test_the_exit_code_tells_when_the_result_is_lost(code: int, category: Category) -> None:
    judged = ending(ended_status(code))
    assert (judged.category, judged.exit_code, judged.result) == (category, code, None)


@pytest.mark.parametrize("code", [137, 143, 1])
def test_a_deleted_pod_without_a_result_is_lost_not_crashed(code: int) -> None:
    assert ending(ended_status(code), deletionTimestamp=stamp(NOW)).category is Category.POD_LOST


def test_a_crash_has_its_last_words() -> None:
    live = LiveReport(tail=("a", "b", "c", "Segmentation fault"))
    assert ending(ended_status(139), live).message.endswith("its last words: b | c | Segmentation fault")


@pytest.mark.parametrize("message", ["", result_json(text="do", truncated=True)])
def test_the_log_has_the_whole_result(message: str) -> None:
    live = LiveReport(result=RunnerResult(outcome=Outcome.COMPLETED, text="done"))
    judged = ending(ended_status(0, message), live)
    assert judged.category is None
    assert judged.result is not None
    assert judged.result.text == "done"


def test_the_termination_message_counts_when_it_is_whole() -> None:
    live = LiveReport(result=RunnerResult(outcome=Outcome.COMPLETED, text="of another life"))
    judged = ending(ended_status(0, DONE), live)
    assert judged.result is not None
    assert judged.result.text == "done"


@pytest.mark.parametrize(
    ("result", "category"),
    [
        (None, Category.POD_LOST),
        (RunnerResult(outcome=Outcome.COMPLETED), None),
        (RunnerResult(outcome=Outcome.FAILED, category=Category.AUTH, message="401"), Category.AUTH),
        (RunnerResult(outcome=Outcome.CANCELLED, category=Category.CANCELLED), Category.POD_LOST),
    ],
)
def test_a_pod_that_is_gone_is_judged_by_its_log(result: RunnerResult | None, category: Category | None) -> None:
    judged = lost(LiveReport(result=result), "job-1")
    assert (judged.category, judged.result) == (category, result)
    assert lost(None, "job-1").category is Category.POD_LOST
