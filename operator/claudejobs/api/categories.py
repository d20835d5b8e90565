"""Every way an attempt can end, and what follows from it.

This table is the only place that says whether an ending is retried, whether it spends one of the attempts
that the job's author paid for, and how the runner's process reports it. docs/reference.md is generated
from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Category(StrEnum):
    """Why an attempt ended other than completed."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    NETWORK = "network"
    MODEL_ERROR = "model_error"
    AUTH = "auth"
    BILLING = "billing"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    MAX_TURNS = "max_turns"
    BUDGET_EXCEEDED = "budget_exceeded"
    OUTPUT_INVALID = "output_invalid"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    OOM = "oom"
    EVICTED = "evicted"
    NODE_LOST = "node_lost"
    PREEMPTED = "preempted"
    POD_LOST = "pod_lost"
    UNSCHEDULABLE = "unschedulable"
    CREDENTIALS = "credentials"
    IMAGE = "image"
    RUNNER_CRASH = "runner_crash"
    SDK_CRASH = "sdk_crash"
    WORKSPACE = "workspace"
    DEPENDENCY = "dependency"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


@dataclass(frozen=True)
class CategoryPolicy:
    """What follows from an ending of one category.

    Attributes:
        retriable: another attempt may succeed without the author changing anything.
        spends_attempt: the ending counts against ``spec.retry.maxAttempts``. What the cluster did to the job
            (eviction, node loss, preemption) does not; such endings have a bound of their own
            (``Settings.max_disruptions``).
        backoff_seconds: the least time before the next attempt, whatever ``spec.retry.backoff`` says.
        exit_code: the runner's process exit code; ``None`` where only the operator can tell the ending.
        meaning: one sentence for the documentation and for status messages.
    """

    retriable: bool
    spends_attempt: bool
    backoff_seconds: int
    exit_code: int | None
    meaning: str


POLICIES: dict[Category, CategoryPolicy] = {
    Category.RATE_LIMITED: CategoryPolicy(
        True, True, 30, 20, "the model API limited the rate; a Retry-After it sent is honoured"
    ),
    Category.OVERLOADED: CategoryPolicy(True, True, 15, 21, "the model API was overloaded or answered 5xx"),
    Category.NETWORK: CategoryPolicy(True, True, 5, 22, "the model API, or the git server, could not be reached"),
    Category.MODEL_ERROR: CategoryPolicy(False, True, 0, 23, "the model refused, or its answer could not be used"),
    Category.AUTH: CategoryPolicy(False, True, 0, 24, "the model API rejected the credentials"),
    Category.BILLING: CategoryPolicy(False, True, 0, 25, "the account has no credit left"),
    Category.INVALID_REQUEST: CategoryPolicy(
        False, True, 0, 26, "the request can never succeed as it is (unknown model, bad option)"
    ),
    Category.CONTEXT_OVERFLOW: CategoryPolicy(False, True, 0, 27, "the conversation outgrew the model's context"),
    Category.MAX_TURNS: CategoryPolicy(False, True, 0, 28, "spec.claude.maxTurns was reached"),
    Category.BUDGET_EXCEEDED: CategoryPolicy(False, True, 0, 29, "spec.claude.maxBudgetUSD was spent"),
    Category.OUTPUT_INVALID: CategoryPolicy(False, True, 0, 30, "the answer never satisfied spec.claude.outputSchema"),
    Category.TIMEOUT: CategoryPolicy(False, True, 0, 31, "spec.timeoutSeconds or spec.activeDeadlineSeconds passed"),
    Category.STALLED: CategoryPolicy(
        True, True, 5, 32, "the agent showed no sign of life for spec.stallTimeoutSeconds"
    ),
    Category.OOM: CategoryPolicy(True, True, 5, None, "the pod used more memory than its limit"),
    Category.EVICTED: CategoryPolicy(
        True, False, 5, None, "the pod was evicted, by its node's kubelet, through the API or by Kueue"
    ),
    Category.NODE_LOST: CategoryPolicy(True, False, 5, None, "the pod's node went away"),
    Category.PREEMPTED: CategoryPolicy(
        True, False, 5, None, "a pod of higher priority took its place, on the node or in Kueue's quota"
    ),
    Category.POD_LOST: CategoryPolicy(True, False, 2, None, "the pod was deleted by someone else before it ended"),
    Category.UNSCHEDULABLE: CategoryPolicy(False, True, 0, None, "no node could take the pod within the start timeout"),
    Category.CREDENTIALS: CategoryPolicy(
        False, True, 0, None, "the credentials Secret or one of its keys does not exist"
    ),
    Category.IMAGE: CategoryPolicy(False, True, 0, None, "the runner's image could not be pulled"),
    Category.RUNNER_CRASH: CategoryPolicy(True, True, 5, None, "the runner ended without a result that can be read"),
    Category.SDK_CRASH: CategoryPolicy(True, True, 5, 33, "the agent's process crashed, restarts included"),
    Category.WORKSPACE: CategoryPolicy(False, True, 0, 34, "the workspace could not be prepared, or ran full"),
    Category.DEPENDENCY: CategoryPolicy(
        False, True, 0, None, "a job of spec.dependsOn did not complete, or depends on this one"
    ),
    Category.CANCELLED: CategoryPolicy(False, True, 0, 35, "the job was cancelled"),
    Category.INTERNAL: CategoryPolicy(True, True, 5, 36, "a defect of this project; please report it"),
}

EXIT_CODES: dict[int, Category] = {
    policy.exit_code: category for category, policy in POLICIES.items() if policy.exit_code is not None
}
"""The runner's exit code to its category; 0 is completed, anything not listed is a crash."""
