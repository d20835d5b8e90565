"""ClaudeCodeJobData: what a producer puts into a BullMQ job. The names are the task manager's and stay as they are."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from .job import MAX_PROMPT


class ClaudeCodeJobData(BaseModel):
    """The payload of one queue job. Unknown fields are ignored: producers carry more than the operator reads."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, strict=True)

    task_id: str = Field(min_length=1, max_length=253, description="The task manager's id of the task.")
    user_id: str = Field(min_length=1, max_length=253, description="Who asked for it.")
    command: str = Field(min_length=1, max_length=MAX_PROMPT, description="The prompt.")
    arguments: dict[str, Any] | list[Any] | None = Field(
        None, description="Carried to the agent's CLAUDE_JOB_ARGUMENTS; a list as the key args of an object."
    )
    working_directory: str | None = Field(
        None,
        max_length=1024,
        description="Where the agent starts: relative to the workspace, or absolute below the queue's "
        "workingDirectoryRoot.",
    )
    timeout: int | float | None = Field(
        None, gt=0, description="Longest time of one attempt, in the queue's timeoutUnit; rounded up to whole seconds."
    )
    metadata: dict[str, Any] | None = Field(None, description="Carried to the ProcessState row.")


class PayloadError(Exception):
    """A queue job's data cannot be run. The message names the field, what came and what is allowed."""


def parse_job_data(data: object) -> ClaudeCodeJobData:
    """Read a queue job's data.

    Raises:
        PayloadError: with the first field that is wrong.
    """
    if not isinstance(data, dict):
        raise PayloadError(f"data: must be an object with taskId, userId and command, not {_short(data)}")
    try:
        return ClaudeCodeJobData.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part not in ("dict[str,any]", "list[any]", "int", "float")]
        came = "" if first["type"] == "missing" else f", not {_short(first['input'])}"
        raise PayloadError(f"data.{'.'.join(path)}: {first['msg']}{came}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
