"""How two states of one attempt become one: the rule that memory and SQL share.

The rule is associative, so that coalescing several states in memory before writing them gives the row that
writing them one by one would have given. ``statements.py`` says the same in SQL; a property test holds the
two together.
"""

from __future__ import annotations

from typing import Any

from claudejobs.api.process_state import ProcessState

NULLABLE_COLUMNS = (
    "task_id",
    "user_id",
    "start_time",
    "end_time",
    "error",
    "error_category",
    "pod_name",
    "node_name",
    "session_id",
    "model",
    "num_turns",
    "cost_usd",
    "input_tokens",
    "output_tokens",
)
"""Columns where a newer value replaces an older one, and null replaces nothing."""

IDENTITY_COLUMNS = ("process_id", "job_uid", "job_namespace", "job_name", "attempt")
"""Columns that never change: the first write decides."""


def merge(old: ProcessState, new: ProcessState) -> ProcessState:
    """Return the row after ``new`` was written over ``old``; both must have the same ``process_id``.

    A terminal row is frozen. Otherwise status moves only to the same or a higher rank, progress only up,
    null (and empty metadata) replaces nothing, and who the row belongs to stays as first written.

    Raises:
        ValueError: the rows are of two attempts.
    """
    if old.process_id != new.process_id:
        raise ValueError(f"cannot merge {new.process_id} into {old.process_id}: rows of one attempt needed")
    if old.status.terminal:
        return old
    update: dict[str, Any] = {}
    for column in NULLABLE_COLUMNS:
        value = getattr(new, column)
        if value is not None:
            update[column] = value
    if new.status.rank >= old.status.rank:
        update["status"] = new.status
    if new.progress > old.progress:
        update["progress"] = new.progress
    if new.metadata:
        update["metadata"] = new.metadata
    return old.model_copy(update=update)
