"""The status of a ClaudeCodeJob, as the operator writes it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from .base import StatusModel
from .categories import Category

MAX_ATTEMPTS = 100
"""Most attempts that a status holds."""


class Phase(StrEnum):
    """Where a job is. The last three are terminal."""

    PENDING = "Pending"
    QUEUED = "Queued"
    SUSPENDED = "Suspended"
    BACKOFF = "Backoff"
    STARTING = "Starting"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job is at its end: no pod of it will ever start again."""
        return self in (Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED)

    @property
    def occupies_slot(self) -> bool:
        """Whether a job in this phase counts against the concurrency limit."""
        return self in (Phase.STARTING, Phase.RUNNING)


class ConditionType(StrEnum):
    """Conditions of a job."""

    STARTED = "Started"
    FINISHED = "Finished"
    SUCCEEDED = "Succeeded"
    FIELDS_IGNORED = "FieldsIgnored"


class Condition(StatusModel):
    """A condition, in the form that Kubernetes prescribes."""

    type: str = Field(max_length=316, description="Started, Finished, Succeeded or FieldsIgnored.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=1024, description="Why, in one word.")
    message: str = Field("", max_length=32768, description="Why, for people.")
    last_transition_time: AwareDatetime = Field(description="When status last changed.")
    observed_generation: int | None = Field(None, description="Generation of the spec that it speaks of.")


def with_condition(
    conditions: list[Condition],
    kind: str,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """The conditions with one of them as it is now, in the order of their types. The time of a condition that holds on
    stays."""
    old = next((condition for condition in conditions if condition.type == kind), None)
    condition = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message[:2000],
        last_transition_time=(old.last_transition_time if old and old.status == value else now.replace(microsecond=0)),
        observed_generation=generation,
    )
    others = [other for other in conditions if other.type != kind]
    return sorted([*others, condition], key=lambda one: one.type)


class UsageStatus(StatusModel):
    """Tokens used."""

    input_tokens: int = Field(0, description="Input tokens, without those from the cache.")
    output_tokens: int = Field(0, description="Output tokens.")
    cache_read_tokens: int = Field(0, description="Input tokens read from the cache.")
    cache_creation_tokens: int = Field(0, description="Input tokens written to the cache.")


class ResultStatus(StatusModel):
    """What the agent answered."""

    text: str | None = Field(None, description="The agent's last answer; cut after 48 KiB.")
    structured_output: Annotated[Any, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = Field(
        None, description="The object that satisfies spec.claude.outputSchema."
    )
    num_turns: int = Field(0, description="Turns of the agent in the last attempt.")
    cost_usd: float = Field(0.0, alias="costUSD", description="Cost of the last attempt, US dollars.")
    usage: UsageStatus = Field(default_factory=UsageStatus, description="Tokens of the last attempt.")
    truncated: bool = Field(False, description="True when text or structuredOutput had to be cut.")


class AttemptStatus(StatusModel):
    """One attempt: one pod."""

    attempt: int = Field(ge=1, description="Number, from 1.")
    pod_name: str = Field(description="Its pod.")
    start_time: AwareDatetime = Field(description="When the pod was made.")
    admitted_time: AwareDatetime | None = Field(
        None, description="When Kueue let its pod be scheduled, where it had held it back."
    )
    end_time: AwareDatetime | None = Field(None, description="When it ended; empty while it runs.")
    outcome: Literal["completed", "failed", "cancelled", "suspended"] | None = Field(None, description="How it ended.")
    category: Category | None = Field(None, description="Why it ended, unless it completed.")
    message: str = Field("", description="Why it ended, for people.")
    exit_code: int | None = Field(None, description="Exit code of the runner.")
    session_id: str | None = Field(None, description="The agent's session.")
    resumed: bool | None = Field(
        None, description="True when it went on with the session of an attempt before it; false when it began anew."
    )
    node_name: str | None = Field(None, description="Where it ran.")
    cost_usd: float = Field(0.0, alias="costUSD", description="What it cost, US dollars.")


class JobStatus(StatusModel):
    """What the operator knows of a job."""

    observed_generation: int | None = Field(None, description="Generation of the spec that the status speaks of.")
    phase: Phase = Field(Phase.PENDING, description="Where the job is.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Started, Finished, Succeeded, FieldsIgnored.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    attempt: int = Field(0, ge=0, description="Number of the newest attempt; 0 before the first.")
    attempts: list[AttemptStatus] = Field(
        default_factory=list, max_length=MAX_ATTEMPTS, description="All attempts, the oldest first."
    )
    attempts_forgiven: int = Field(
        0, ge=0, description="Attempts up to this number do not count against the bounds: they were before a rerun."
    )
    rerun: int = Field(0, ge=0, description="The spec.rerun that was acted on last.")
    next_attempt_time: AwareDatetime | None = Field(None, description="When the next attempt starts, in Backoff.")
    pod_name: str | None = Field(None, description="Pod of the newest attempt.")
    session_id: str | None = Field(None, description="The agent's session.")
    workspace_claim: str | None = Field(
        None, description="The PersistentVolumeClaim that spec.workspace.volumeClaimTemplate has made."
    )
    progress: int = Field(0, ge=0, le=100, description="Percent, from the agent's own task list; 100 when completed.")
    message: str = Field("", description="What the job does or waits for, or why it ended.")
    reason: str = Field("", description="The same in one word; after a failure the category.")
    log_tail: list[str] = Field(
        default_factory=list, max_length=10, description="After a failure: the last that the agent did and printed."
    )
    result: ResultStatus | None = Field(None, description="What the agent answered.")
    cost_usd: float = Field(0.0, alias="costUSD", description="What the job cost so far, US dollars, all attempts.")
    start_time: AwareDatetime | None = Field(
        None, description="When the first attempt started; empty while Kueue holds it back."
    )
    completion_time: AwareDatetime | None = Field(None, description="When the job reached a terminal phase.")

    @property
    def open_attempt(self) -> AttemptStatus | None:
        """The newest attempt, when it has not ended."""
        last = self.attempts[-1] if self.attempts else None
        return last if last and last.end_time is None else None
