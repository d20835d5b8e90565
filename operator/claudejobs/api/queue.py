"""ClaudeCodeQueue: a BullMQ queue that is drained into ClaudeCodeJobs. ``crds/`` is generated from here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from .base import SpecModel, StatusModel, cel, validations
from .job import INTERRUPT_RULE, JobTemplate
from .status import Condition

QUEUE_KIND = "ClaudeCodeQueue"
QUEUE_PLURAL = "claudecodequeues"

DEAD_LETTER_SUFFIX = "-dead-letter"

QueueName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^:\s]+$")]
NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

SOURCE_LABEL = "claudecode.dev/queues-from"
"""Label of a namespace that takes jobs from the queues of another namespace: that namespace's name."""


class QueueSpec(SpecModel):
    """Which queue, and what its jobs become."""

    queue_name: QueueName = Field(description="BullMQ's name of the queue, as producers write it.")
    prefix: str = Field(
        "bull",
        min_length=1,
        max_length=100,
        pattern=r"^\S+$",
        description="BullMQ's prefix, as producers set it. A Redis Cluster needs one in braces: {bull}.",
    )
    target_namespace: NamespaceName | None = Field(
        None,
        description="Where the jobs are made; default: the namespace of this resource. Another namespace must allow it "
        f"by the label {SOURCE_LABEL} with the name of this resource's namespace.",
    )
    timeout_unit: Literal["milliseconds", "seconds"] = Field(
        "milliseconds", description="Unit of timeout in the producers' data."
    )
    working_directory_root: str = Field(
        "/workspace",
        min_length=1,
        max_length=1024,
        pattern=r"^/",
        description="An absolute workingDirectory below it is taken relative to the workspace; any other is refused.",
    )
    progress: Literal["percent", "object"] = Field(
        "percent",
        description="What updateProgress is given: a number from 0 to 100, or an object with percent, message, phase "
        "and attempt.",
    )
    look_ahead: int = Field(
        10,
        ge=0,
        le=1000,
        description="Most jobs that are fetched although the concurrency limits do not admit them yet. They stand in "
        "line with priority in the cluster; the others stay in Redis, where producers can change or remove them. "
        "Ten times as many while slots stay empty and all who wait are users at their limits.",
    )
    lock_seconds: int = Field(
        120,
        ge=10,
        le=3600,
        description="For how long a queue job is locked, seconds; locks are renewed after a quarter of it. A BullMQ "
        "worker elsewhere takes jobs over when the operator could not renew for this long.",
    )
    dead_letter: bool = Field(
        True,
        description="Whether the data of jobs that failed for good is put into the queue QUEUENAME"
        f"{DEAD_LETTER_SUFFIX}, from which `claudejobs replay` sends them back.",
    )
    suspend: bool = Field(False, description="True fetches no more; what was fetched goes on to its end.")
    template: JobTemplate = Field(
        default_factory=JobTemplate,
        description="What the jobs have in common. A producer's timeout, attempts, backoff and priority go before it.",
        json_schema_extra=validations(
            cel(
                "!has(self.workspace) || !has(self.workspace.persistentVolumeClaim)",
                "jobs of a queue run side by side and cannot share a claim; use volumeClaimTemplate",
            ),
            INTERRUPT_RULE,
        ),
    )


class QueueCounts(StatusModel):
    """Jobs of the queue in Redis, by BullMQ's state."""

    waiting: int = Field(0, description="In wait, without those that have a priority.")
    prioritized: int = Field(0, description="Waiting with a priority.")
    delayed: int = Field(0, description="Not due yet.")
    active: int = Field(0, description="Fetched by a worker, this operator or another.")
    completed: int = Field(0, description="Completed, as far as kept.")
    failed: int = Field(0, description="Failed, as far as kept.")
    dead_letter: int = Field(0, description="In the dead-letter queue.")


class QueueStatus(StatusModel):
    """What the operator knows of a queue."""

    observed_generation: int | None = Field(None, description="Generation of the spec that the status speaks of.")
    connected: bool = Field(False, description="Whether Redis answers.")
    counts: QueueCounts = Field(default_factory=QueueCounts, description="Jobs in Redis.")
    held: int = Field(0, description="Queue jobs that this operator holds: fetched and not finished.")
    lag_seconds: int = Field(0, description="Age of the job that waits longest, seconds.")
    paused: bool = Field(False, description="Whether producers have paused the queue.")
    producer_version: str | None = Field(None, description="Library and version that last wrote the queue's settings.")
    redis_run_id: str | None = Field(None, description="The Redis process that was seen last.")
    last_error: str | None = Field(None, max_length=2048, description="What went wrong last.")
    last_error_time: AwareDatetime | None = Field(None, description="When.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted, Connected, Compatible and Exclusive.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
