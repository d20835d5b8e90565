"""From how a run ended to its category: the endings that the SDK was seen to give."""

from __future__ import annotations

import pytest
from claude_agent_sdk import (
    CLIConnectionError,
    CLIJSONDecodeError,
    CLINotFoundError,
    ProcessError,
    ResultError,
)

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import BUDGET_SPENT, Outcome
from claudejobs.runner.classify import Ending, Report, StopReason, classify, is_crash, lost_session


def api_error(status: int | None, label: str, text: str = "API Error", **more: str) -> Ending:
    report = Report(subtype="success", is_error=True, status=status, terminal_reason="api_error", text=text, **more)
    # The SDK raises as well, after the result.
    return Ending(report=report, error=ResultError("again", {"subtype": "success"}, 1), label=label, started=True)


def result(subtype: str, terminal_reason: str | None = None) -> Ending:
    return Ending(report=Report(subtype=subtype, is_error=True, terminal_reason=terminal_reason), started=True)


FAILURES = [
    (api_error(401, "authentication_failed"), Category.AUTH),
    (api_error(403, "authentication_failed"), Category.AUTH),
    (api_error(None, "authentication_failed"), Category.AUTH),
    (api_error(429, "rate_limit"), Category.RATE_LIMITED),
    (api_error(529, "server_error"), Category.OVERLOADED),
    (api_error(500, "server_error"), Category.OVERLOADED),
    (api_error(None, "server_error"), Category.NETWORK),
    (api_error(None, "unknown", "API Error: Unable to connect (ECONNREFUSED)"), Category.NETWORK),
    (api_error(None, "unknown", "Request timed out"), Category.NETWORK),
    (api_error(400, "unknown"), Category.INVALID_REQUEST),
    (api_error(400, "unknown", f"API Error: 400 claudejobs gateway: {BUDGET_SPENT}: 1"), Category.BUDGET_EXCEEDED),
    (api_error(404, "model_not_found"), Category.INVALID_REQUEST),
    (api_error(413, "invalid_request"), Category.INVALID_REQUEST),
    (api_error(400, "billing_error", "Credit balance is too low"), Category.BILLING),
    (api_error(400, "unknown", "Your credit balance is too low"), Category.BILLING),
    (api_error(400, "invalid_request", "Prompt is too long"), Category.CONTEXT_OVERFLOW),
    (api_error(None, "max_output_tokens"), Category.MODEL_ERROR),
    (api_error(None, "invalid_request", stop_reason="refusal"), Category.MODEL_ERROR),
    (result("error_max_turns", "max_turns"), Category.MAX_TURNS),
    (result("error_max_budget_usd", "budget_exhausted"), Category.BUDGET_EXCEEDED),
    (result("error_max_structured_output_retries"), Category.OUTPUT_INVALID),
    (result("success", "prompt_too_long"), Category.CONTEXT_OVERFLOW),
    (result("error_during_execution"), Category.SDK_CRASH),
    (Ending(report=Report(subtype="success"), wants_output=True), Category.OUTPUT_INVALID),
    (Ending(error=ProcessError("x", exit_code=-9), started=True), Category.SDK_CRASH),
    (Ending(error=ProcessError("x", exit_code=143)), Category.SDK_CRASH),
    (Ending(error=ProcessError("x", exit_code=1), started=True), Category.SDK_CRASH),
    (Ending(error=CLIJSONDecodeError("{", ValueError()), started=True), Category.SDK_CRASH),
    (Ending(started=True), Category.SDK_CRASH),
    (Ending(error=ProcessError("x", exit_code=1), stderr="unknown option"), Category.INVALID_REQUEST),
    (Ending(error=Exception("Control request timeout: initialize")), Category.SDK_CRASH),
    (Ending(error=CLINotFoundError()), Category.INTERNAL),
    (Ending(error=Exception("surprise")), Category.INTERNAL),
    (Ending(error=CLIConnectionError("no such directory")), Category.INTERNAL),
    (Ending(error=KeyError("surprise")), Category.INTERNAL),
    (Ending(stop=StopReason.TIMEOUT), Category.TIMEOUT),
    (Ending(stop=StopReason.STALLED), Category.STALLED),
    (Ending(stop=StopReason.AUTH, retry_status=401), Category.AUTH),
]


def test_agent_that_never_answers_is_named_with_the_time_and_what_to_do() -> None:
    verdict = classify(Ending(error=Exception("Control request timeout: initialize"), stderr="waiting for x"))
    assert "did not answer the SDK after its start, for 60 s" in verdict.message
    assert "spec.podTemplate.resources.requests.cpu" in verdict.message
    assert verdict.message.endswith("its last words: waiting for x")


@pytest.mark.parametrize(("ending", "category"), FAILURES)
def test_failure(ending: Ending, category: Category) -> None:
    verdict = classify(ending)
    assert (verdict.outcome, verdict.category) == (Outcome.FAILED, category)
    assert verdict.message
    assert POLICIES[category].exit_code is not None, "the runner must be able to say it"


def test_success_is_believed_only_without_is_error() -> None:
    assert classify(Ending(report=Report(subtype="success"))).outcome is Outcome.COMPLETED
    assert classify(api_error(529, "server_error")).outcome is Outcome.FAILED


def test_denied_permission_is_no_failure() -> None:
    ending = Ending(report=Report(subtype="success", terminal_reason="completed", output=True), wants_output=True)
    assert classify(ending).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("terminal_reason", ["aborted_tools", "aborted_streaming"])
def test_interrupted_agent_is_cancelled(terminal_reason: str) -> None:
    report = Report("error_during_execution", is_error=True, terminal_reason=terminal_reason)
    verdict = classify(Ending(report=report, stop=StopReason.CANCELLED))
    assert (verdict.outcome, verdict.category) == (Outcome.CANCELLED, Category.CANCELLED)


def test_answer_that_was_complete_before_the_interrupt_stands() -> None:
    report = Report("success", terminal_reason="completed")
    assert classify(Ending(report=report, stop=StopReason.CANCELLED)).outcome is Outcome.COMPLETED


def test_message_of_a_crash_names_the_signal_and_the_last_words() -> None:
    message = classify(Ending(error=ProcessError("x", exit_code=-9), started=True, stderr="panic: 7")).message
    assert "SIGKILL" in message
    assert "panic: 7" in message


def test_only_a_death_without_a_result_is_a_crash() -> None:
    assert is_crash(Ending(error=ProcessError("x", exit_code=-9)))
    assert not is_crash(Ending(error=ProcessError("x", exit_code=1)))
    assert not is_crash(api_error(529, "server_error"))
    assert not is_crash(Ending(error=CLINotFoundError()))
    assert not is_crash(Ending(error=KeyError("x")))


def test_session_that_the_cli_does_not_know_is_told_from_other_errors() -> None:
    data = {"subtype": "error_during_execution", "errors": ["No conversation found with session ID: x"]}
    assert lost_session(Ending(error=ResultError("no", data, 1)))
    assert not lost_session(api_error(400, "unknown"))
