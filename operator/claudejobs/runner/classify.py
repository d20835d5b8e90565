"""From how an agent run ended to a category. Pure.

The SDK tells one ending in several places that disagree: an API failure is a result with subtype ``success``,
followed by an exception; a crash is an exception alone; a schema that was never satisfied looks like success.
``classify`` reads them in the order in which they can be trusted: the runner's own decision to stop, the
result, the exception.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from claude_agent_sdk import (
    ClaudeSDKError,
    CLIConnectionError,
    CLINotFoundError,
    ProcessError,
    ResultError,
    ResultMessage,
)

from claudejobs.api.categories import Category
from claudejobs.api.events import BUDGET_SPENT, Outcome

ABORTED = frozenset({"aborted_tools", "aborted_streaming"})
ANSWER_SECONDS = 60
"""How long the SDK waits for the CLI's first answer."""
NO_CONVERSATION = "No conversation found"
NETWORK_SIGNS = (
    "econnrefused",
    "econnreset",
    "enotfound",
    "eai_again",
    "etimedout",
    "epipe",
    "socket",
    "timed out",
    "connection error",
    "unable to connect",
    "fetch failed",
)


class StopReason(StrEnum):
    """Why the runner itself stopped the agent."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    AUTH = "auth"


@dataclass(frozen=True)
class Report:
    """What the CLI's result said; ``output`` is whether it held structured output."""

    subtype: str | None = None
    is_error: bool = False
    status: int | None = None
    terminal_reason: str | None = None
    stop_reason: str | None = None
    text: str = ""
    output: bool = False

    @classmethod
    def of_message(cls, message: ResultMessage) -> Report:
        """The report of a result message."""
        return cls(
            subtype=message.subtype,
            is_error=message.is_error,
            status=message.api_error_status,
            terminal_reason=message.terminal_reason,
            stop_reason=message.stop_reason,
            text=_said(message.result, message.errors),
            output=message.structured_output is not None,
        )

    @classmethod
    def of_error(cls, error: ResultError) -> Report:
        """The report of a result that came only as an exception (a session that could not be resumed)."""
        return cls(
            subtype=error.subtype,
            is_error=True,
            status=error.api_error_status,
            terminal_reason=error.terminal_reason,
            stop_reason=error.data.get("stop_reason"),
            text=_said(error.result, error.errors) or str(error),
        )


def _said(result: Any, errors: list[str] | None) -> str:
    return result if isinstance(result, str) and result else "; ".join(errors or [])


@dataclass(frozen=True)
class Ending:
    """All that is known about how one process of the agent ended.

    Attributes:
        report: its last result, if it gave one.
        error: what the SDK raised, if it did.
        label: the ``error`` of the last assistant message.
        stop: set when the runner stopped it, and why.
        retry_status: HTTP status of the last API error that the CLI wanted to retry.
        started: the CLI had begun the session.
        wants_output: the job has an output schema.
        stderr: the tail of the CLI's standard error.
    """

    report: Report | None = None
    error: BaseException | None = None
    label: str | None = None
    stop: StopReason | None = None
    retry_status: int | None = None
    started: bool = False
    wants_output: bool = False
    stderr: str = ""


@dataclass(frozen=True)
class Verdict:
    """The ending in the operator's terms."""

    outcome: Outcome
    category: Category | None
    message: str
    status: int | None = None


def is_crash(ending: Ending) -> bool:
    """The CLI's process died or fell silent without a result, so that running it again may help."""
    error = ending.error
    if ending.report is not None or isinstance(error, ResultError | CLINotFoundError):
        return False
    if isinstance(error, ProcessError):
        # Exit 1 before the session began is a refused option, and would be refused again.
        code = error.exit_code
        return ending.started or code is None or code < 0 or code >= 128
    if isinstance(error, CLIConnectionError):
        return ending.started
    return error is None or isinstance(error, ClaudeSDKError) or _is_silent(error)


def _is_silent(error: BaseException) -> bool:
    """The CLI did not answer the SDK in time, as it happens on a machine with too much to do; a bare Exception."""
    return type(error) is Exception and str(error).startswith("Control request timeout")


def lost_session(ending: Ending) -> bool:
    """The CLI did not know the session that it was to resume."""
    report = ending.report or (Report.of_error(ending.error) if isinstance(ending.error, ResultError) else None)
    return report is not None and report.is_error and NO_CONVERSATION in report.text


def classify(ending: Ending) -> Verdict:
    """What the ending means."""
    report = ending.report
    if report is None and isinstance(ending.error, ResultError):
        report = Report.of_error(ending.error)
    finished = report is not None and not report.is_error and report.terminal_reason not in ABORTED
    # An answer that was complete before the interrupt reached the agent stands.
    if ending.stop is not None and not finished:
        return _stopped(ending.stop, ending)
    if report is None:
        return _without_result(ending)
    if not report.is_error:
        return _answered(report, ending)
    category = _category_of_error(report, ending.label)
    return Verdict(Outcome.FAILED, category, report.text or f"{report.subtype} without a message", report.status)


def _stopped(stop: StopReason, ending: Ending) -> Verdict:
    if stop is StopReason.CANCELLED:
        return Verdict(Outcome.CANCELLED, Category.CANCELLED, "cancelled: the runner was asked to stop")
    if stop is StopReason.TIMEOUT:
        return Verdict(Outcome.FAILED, Category.TIMEOUT, "stopped: spec.timeoutSeconds passed", ending.retry_status)
    if stop is StopReason.STALLED:
        message = "stopped: the agent showed no sign of life for spec.stallTimeoutSeconds"
        return Verdict(Outcome.FAILED, Category.STALLED, message, ending.retry_status)
    message = f"the model API rejected the credentials with status {ending.retry_status}; check the Secret's key"
    return Verdict(Outcome.FAILED, Category.AUTH, message, ending.retry_status)


def _answered(report: Report, ending: Ending) -> Verdict:
    if ending.wants_output and not report.output:
        message = "the agent ended without an answer that satisfies spec.claude.outputSchema"
        return Verdict(Outcome.FAILED, Category.OUTPUT_INVALID, message)
    return Verdict(Outcome.COMPLETED, None, "completed")


BY_SUBTYPE = {
    "error_max_turns": Category.MAX_TURNS,
    "error_max_budget_usd": Category.BUDGET_EXCEEDED,
    "error_max_structured_output_retries": Category.OUTPUT_INVALID,
}

BY_TERMINAL_REASON = {
    "max_turns": Category.MAX_TURNS,
    "budget_exhausted": Category.BUDGET_EXCEEDED,
    "prompt_too_long": Category.CONTEXT_OVERFLOW,
}

BY_LABEL = {
    "billing_error": Category.BILLING,
    "authentication_failed": Category.AUTH,
    "max_output_tokens": Category.MODEL_ERROR,
    "model_not_found": Category.INVALID_REQUEST,
    "rate_limit": Category.RATE_LIMITED,
}

BY_STATUS = {401: Category.AUTH, 403: Category.AUTH, 429: Category.RATE_LIMITED, 408: Category.NETWORK}


def _category_of_error(report: Report, label: str | None) -> Category:
    """The category of a result with ``is_error``; the most specific sign wins."""
    exact = BY_SUBTYPE.get(report.subtype or "") or BY_TERMINAL_REASON.get(report.terminal_reason or "")
    if exact is not None:
        return exact
    if report.stop_reason == "refusal":
        return Category.MODEL_ERROR
    if (labelled := BY_LABEL.get(label or "")) is not None:
        return labelled
    if report.status is not None:
        return _category_of_status(report.status, report.text)
    if label == "server_error" or any(sign in report.text.lower() for sign in NETWORK_SIGNS):
        return Category.NETWORK
    if label == "invalid_request":
        return Category.INVALID_REQUEST
    return Category.SDK_CRASH


def _category_of_status(status: int, text: str) -> Category:
    if (known := BY_STATUS.get(status)) is not None:
        return known
    if status >= 500:
        return Category.OVERLOADED
    if BUDGET_SPENT in text:
        return Category.BUDGET_EXCEEDED
    if "prompt is too long" in text.lower():
        return Category.CONTEXT_OVERFLOW
    if "credit balance" in text.lower():
        return Category.BILLING
    return Category.INVALID_REQUEST


def _without_result(ending: Ending) -> Verdict:
    error = ending.error
    if is_crash(ending):
        return Verdict(Outcome.FAILED, Category.SDK_CRASH, _crash_message(ending))
    if isinstance(error, ProcessError):
        said = f": {ending.stderr}" if ending.stderr else ""
        message = f"the agent refused to start (exit code {error.exit_code}){said}"
        return Verdict(Outcome.FAILED, Category.INVALID_REQUEST, message)
    name = type(error).__name__
    return Verdict(Outcome.FAILED, Category.INTERNAL, f"unexpected {name}: {error}")


def _crash_message(ending: Ending) -> str:
    error = ending.error
    if error is not None and _is_silent(error):
        where = "after it had begun" if ending.started else f"after its start, for {ANSWER_SECONDS} s"
        said = f"; its last words: {ending.stderr}" if ending.stderr else ""
        return (
            f"the agent's process did not answer the SDK {where}: give the pod more processor time "
            f"(spec.podTemplate.resources.requests.cpu) or mend what its MCP servers wait for{said}"
        )
    code = error.exit_code if isinstance(error, ProcessError) else None
    if code is not None and code < 0:
        try:
            how = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
    elif code is not None:
        how = f"ended with exit code {code}"
    else:
        how = "ended without a result" if error is None else f"failed: {error}"
    return f"the agent's process {how}" + (f"; its last words: {ending.stderr}" if ending.stderr else "")
