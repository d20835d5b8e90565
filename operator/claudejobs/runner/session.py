"""Everything around the attempt: input, signals, result, exit code. Whatever happens ends in a result."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import claude_agent_sdk

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import INPUT_FILE, STATE_DIR, WORKSPACE_DIR, Outcome, RunnerResult

from . import sandbox
from .classify import StopReason
from .emit import EventWriter, one_line, write_termination_message
from .inputs import INPUT_VARIABLE, TERMINATION_LOG_VARIABLE, WORKSPACE_VARIABLE, InputError, await_input, read_input
from .processes import become_subreaper, hide, kill_descendants
from .redact import Redactor
from .run import Attempt


def run_job(protocol: int, signalled: Callable[[], bool]) -> int:
    """Run the job whose input is mounted; the exit code.

    In a pod that was started ahead, wait for the job first, all that is slow to load being loaded.

    Args:
        protocol: the descriptor that event lines go to.
        signalled: whether a signal to stop came before this could listen for one.
    """
    path = Path(os.environ.get(INPUT_VARIABLE) or INPUT_FILE)
    if not await_input(path, signalled):
        return 0
    writer = EventWriter(protocol, Redactor.of_environment(os.environ))
    try:
        result = asyncio.run(_run(path, writer, signalled))
    except (Exception, asyncio.CancelledError) as error:
        result = _failure(Category.INTERNAL, f"unexpected {type(error).__name__}: {error}")
    kill_descendants()
    return _report(writer, result)


async def _run(path: Path, writer: EventWriter, signalled: Callable[[], bool]) -> RunnerResult:
    try:
        job = read_input(path)
    except InputError as error:
        writer.started(1, claude_agent_sdk.__version__)
        return _failure(error.category, str(error))
    writer.started(job.attempt, claude_agent_sdk.__version__)
    if not hide():
        writer.notice("the kernel refused PR_SET_DUMPABLE; the agent can look into the runner", "warning")
    if weakness := sandbox.weakness(sandbox.abi()):
        writer.notice(weakness, "warning")
    if not become_subreaper():
        writer.notice("the kernel refused PR_SET_CHILD_SUBREAPER; orphans may outlive the agent", "warning")
    workspace = Path(os.environ.get(WORKSPACE_VARIABLE) or WORKSPACE_DIR)
    attempt = Attempt(job, writer, workspace, workspace / Path(STATE_DIR).relative_to(WORKSPACE_DIR))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, attempt.stop, StopReason.CANCELLED)
    if signalled():
        return RunnerResult(
            outcome=Outcome.CANCELLED,
            category=Category.CANCELLED,
            message="cancelled: the runner was asked to stop before it began",
        )
    return await attempt.run()


def _failure(category: Category, message: str) -> RunnerResult:
    return RunnerResult(outcome=Outcome.FAILED, category=category, message=one_line(message))


def _report(writer: EventWriter, result: RunnerResult) -> int:
    result = writer.redact.result(result)
    path = Path(os.environ.get(TERMINATION_LOG_VARIABLE) or "/dev/termination-log")
    error = write_termination_message(path, result)
    try:
        if error is not None:
            writer.notice(f"cannot write the termination message {path}: {error.strerror}", "warning")
        writer.result(result)
    except OSError:
        pass  # Nobody reads the log any more; the termination message is written.
    if result.category is None:
        return 0
    code = POLICIES[result.category].exit_code
    return 1 if code is None else code
