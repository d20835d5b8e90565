"""Why an attempt ended: from what the runner reported, the kubelet recorded and the cluster did."""

from __future__ import annotations

import re
from dataclasses import dataclass

from claudejobs.api.categories import EXIT_CODES, POLICIES, Category
from claudejobs.api.events import Outcome, RunnerResult

from .views import LiveReport, PodView

MAX_SIGNAL = 64
"""The highest signal of Linux; a shell and a container runtime report death by one as exit code 128 and more."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended.

    Attributes:
        category: ``None`` only when it completed.
        result: what the runner reported, when it did.
    """

    category: Category | None
    message: str
    result: RunnerResult | None = None
    exit_code: int | None = None


def ending_of(pod: PodView, live: LiveReport | None) -> Ending:
    """Judge a pod whose container has ended.

    A completed result counts whatever happened to the pod afterwards. A runner that says ``cancelled`` was told
    so by a SIGTERM; who sent it is the question that ``_disruption`` answers.
    """
    result = _whole(pod.result, live)
    if result and result.outcome is Outcome.COMPLETED:
        return Ending(None, "", result, pod.exit_code or 0)
    disruption = _disruption(pod)
    stopped = result is None or result.outcome is Outcome.CANCELLED
    if disruption and stopped:
        return Ending(disruption[0], disruption[1], result, pod.exit_code)
    if pod.container_reason == "OOMKilled" and (stopped or result is None or result.category is Category.SDK_CRASH):
        return Ending(Category.OOM, _oom_message(), result, pod.exit_code)
    if result and result.category is not Category.CANCELLED and result.category:
        message = result.message or POLICIES[result.category].meaning
        return Ending(result.category, message, result, pod.exit_code)
    if result:
        message = "the pod was told to stop by something other than the operator"
        return Ending(Category.POD_LOST, message, result, pod.exit_code)
    return _without_result(pod, live)


def lost(live: LiveReport | None, pod_name: str) -> Ending:
    """Judge an attempt whose pod is gone: its last event may still have told how it ended."""
    if live and live.result and live.result.outcome is Outcome.COMPLETED:
        return Ending(None, "", live.result, 0)
    if live and live.result and live.result.category not in (None, Category.CANCELLED):
        return Ending(live.result.category, live.result.message, live.result)
    return Ending(Category.POD_LOST, f"pod {pod_name} was deleted before it ended", live.result if live else None)


def _whole(result: RunnerResult | None, live: LiveReport | None) -> RunnerResult | None:
    """The result event where the termination message had to be cut, or was lost with the container."""
    if live and live.result and (result is None or result.truncated):
        return live.result
    return result


def _disruption(pod: PodView) -> tuple[Category, str] | None:
    if pod.kueue_stop:
        # Whatever made it do so, Kueue lets the next attempt in when there is quota for it.
        category = Category.PREEMPTED if "Preempted" in pod.kueue_stop else Category.EVICTED
        return category, f"Kueue took the pod's place back: {pod.kueue_stop}"
    if pod.disruption == "PreemptionByScheduler":
        return Category.PREEMPTED, "a pod of higher priority needed the node"
    if pod.disruption in ("DeletionByTaintManager", "DeletionByPodGC") or pod.reason in ("NodeLost", "NodeShutdown"):
        return Category.NODE_LOST, f"node {pod.node} went away"
    if pod.container_reason in ("ContainerStatusUnknown", "Unknown"):
        return Category.NODE_LOST, f"node {pod.node} was started anew, and the container was gone"
    if pod.reason == "Evicted" or pod.disruption in ("EvictionByEvictionAPI", "TerminationByKubelet"):
        # Of an eviction by the kubelet the pod tells; otherwise its message is whatever the runner left.
        told = pod.message if pod.reason == "Evicted" or pod.disruption == "TerminationByKubelet" else ""
        if re.search(r"exceed(s|ed) (the|its) .*limit", told):
            # The job has filled what it was given: the next attempt would fill it, too.
            return Category.WORKSPACE, f"{told.rstrip(' .')}; {_remedy(told)}"
        return Category.EVICTED, told or f"the pod was evicted from node {pod.node}"
    if pod.reason == "DeadlineExceeded":
        return Category.TIMEOUT, "the attempt's timeout passed, and the runner did not stop by itself"
    return None


def _remedy(told: str) -> str:
    """What to do about a limit of disk, from the kubelet's words."""
    volume = re.search(r'EmptyDir volume "([^"]+)"', told)
    if volume is None:
        return "raise spec.podTemplate.resources.limits[ephemeral-storage], or write less"
    if volume[1] == "workspace":
        return "raise spec.workspace.emptyDir.sizeLimit, or write less"
    return "write to the workspace instead"


def _without_result(pod: PodView, live: LiveReport | None) -> Ending:
    """The runner left nothing that can be read: its exit code and its last words are all there is."""
    tail = f"; its last words: {' | '.join(live.tail[-3:])}" if live and live.tail else ""
    code = pod.exit_code
    if code in EXIT_CODES and EXIT_CODES[code] is not Category.CANCELLED:
        category = EXIT_CODES[code]
        return Ending(category, f"{POLICIES[category].meaning}; the runner left no further result", None, code)
    if pod.deleting_since is not None:
        return Ending(Category.POD_LOST, f"pod {pod.name} was deleted before it ended", None, code)
    if code is None:  # the kubelet did not take it in: no room after all, a device gone, the node starting anew
        told = pod.message or pod.reason or "it does not say why"
        return Ending(Category.EVICTED, f"node {pod.node} refused the pod: {told}")
    # Beyond the signals lies 255, with which containerd reports a container whose shim died.
    how = f"was killed by signal {code - 128}" if 128 < code <= 128 + MAX_SIGNAL else f"exited with code {code}"
    message = f"the runner {how} without a result that can be read{tail}"
    return Ending(Category.RUNNER_CRASH, message[:2000], None, code)


def _oom_message() -> str:
    return "the pod used more memory than its limit; raise spec.podTemplate.resources.limits.memory"
