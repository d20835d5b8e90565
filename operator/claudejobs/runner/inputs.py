"""Where a container of a job's pod finds its input and leaves its result. It loads without the SDK."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from claudejobs.api.categories import Category
from claudejobs.api.events import RunnerInput

INPUT_VARIABLE = "CLAUDEJOBS_INPUT"
WORKSPACE_VARIABLE = "CLAUDEJOBS_WORKSPACE"
TERMINATION_LOG_VARIABLE = "CLAUDEJOBS_TERMINATION_LOG"


class InputError(Exception):
    """The input document cannot be used; ``category`` says whose fault that is."""

    def __init__(self, category: Category, message: str) -> None:
        super().__init__(message)
        self.category = category


WAIT_TICK = 0.02
"""Seconds between two looks for the input of a pod that waits for a job."""


def await_input(path: Path, stopped: Callable[[], bool]) -> bool:
    """Wait while the input is empty: the pod was started ahead, and no job has taken it yet.

    Returns:
        False when ``stopped`` says so first.
    """
    while _is_empty(path):
        if stopped():
            return False
        time.sleep(WAIT_TICK)
    return True


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False  # reading it tells


def read_input(path: Path) -> RunnerInput:
    """The input document.

    Raises:
        InputError: when it is missing or not what the contract says.
    """
    try:
        document = path.read_bytes()
    except OSError as error:
        message = f"cannot read the job's input {path}: {error.strerror}; the operator mounts it from a Secret"
        raise InputError(Category.INTERNAL, message) from error
    try:
        return RunnerInput.model_validate_json(document)
    except ValidationError as error:
        # Without the values: a prompt or a token would end up in a status message.
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise InputError(Category.INVALID_REQUEST, f"the job's input {path} is not valid: {faults}") from error
