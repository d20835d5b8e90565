"""The ProcessState row: one per attempt of a job, as the task manager's readers see it.

Column names and the status values are a contract with readers outside this project (Prisma, dashboards).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from .categories import Category


class ProcessStatus(StrEnum):
    """States of a row. The last three are terminal: a row never leaves them."""

    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the row is at its end."""
        return self in (ProcessStatus.COMPLETED, ProcessStatus.FAILED, ProcessStatus.CANCELLED)

    @property
    def rank(self) -> int:
        """Order in which a row may move: starting 0, running 1, terminal 2."""
        return 2 if self.terminal else int(self is ProcessStatus.RUNNING)


MAX_ROW_LOG_LINES = 200
"""How many of the newest log lines a row carries itself; ``process_logs`` has them all."""


def process_id(job_uid: str, attempt: int) -> str:
    """Primary key of the row of one attempt."""
    return f"{job_uid}-{attempt}"


class ProcessState(BaseModel):
    """One row of ``process_states``, except ``logs``, ``created_at`` and ``updated_at``, which the store owns."""

    model_config = ConfigDict(frozen=True)

    process_id: str
    task_id: str | None = None
    user_id: str | None = None
    job_uid: str
    job_namespace: str
    job_name: str
    attempt: int = Field(ge=0)
    status: ProcessStatus
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None
    progress: int = Field(default=0, ge=0, le=100)
    error: str | None = None
    error_category: Category | None = None
    pod_name: str | None = None
    node_name: str | None = None
    session_id: str | None = None
    model: str | None = None
    num_turns: int | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class LogLine(BaseModel):
    """One line of an attempt's log.

    Attributes:
        seq: position in the attempt's log, from 1, without gaps; with ``process_id`` it identifies the line,
            so that writing a line twice changes nothing.
        stream: ``event`` for a line of the runner's protocol, ``stdout`` for anything else.
    """

    model_config = ConfigDict(frozen=True)

    process_id: str
    seq: int = Field(ge=1)
    time: AwareDatetime
    stream: str = "stdout"
    line: str
