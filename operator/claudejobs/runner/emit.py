"""Writing the runner's side of the protocol: event lines and the termination message, both bounded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claudejobs.api.events import (
    MAX_TERMINATION_BYTES,
    ApiRetry,
    Notice,
    Progress,
    Result,
    RunnerResult,
    Session,
    Started,
    Text,
    ToolResult,
    ToolUse,
)

from .redact import Redactor

LINE_BYTES = 64 * 1024
"""Longest event line written, its line feed included; well inside what the operator parses."""

SUMMARY_CHARS = 2000
MESSAGE_CHARS = 500


def clean(text: str) -> str:
    """The text without what UTF-8 cannot carry (lone surrogates, which JSON lets through)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters; a cut is shown by an ellipsis."""
    text = clean(text)
    return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"


def one_line(text: str, limit: int = MESSAGE_CHARS) -> str:
    """The text on one line, for messages that people read in a table."""
    return shorten(" ".join(text.split()), limit)


def cut_to_fit(text: str, size_of: Callable[[str], int], limit: int) -> str | None:
    """The longest head of ``text`` whose ``size_of`` is within ``limit``; ``None`` if there is none.

    The cut falls between characters, and an ellipsis ends it.
    """
    if size_of(text) <= limit:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size_of(text[:middle] + "…") <= limit else (low, middle - 1)
    head = text[:low] + "…"
    return head if size_of(head) <= limit else None


def fit_result(result: RunnerResult, limit: int) -> RunnerResult:
    """The result in at most ``limit`` bytes of JSON.

    What code reads outlives what people read: the text is cut first, then dropped, then the structured output
    goes as a whole (half a document is none), and last the message is cut. ``truncated`` says that any of it
    happened.
    """
    result = _encodable(result)
    if encoded_size(result) <= limit:
        return result
    result = result.model_copy(update={"truncated": True})
    for drop_output in (False, True):
        if drop_output:
            result = result.model_copy(update={"structured_output": None})
        without_text = result.model_copy(update={"text": None})
        if result.text is not None and (fitted := _cut_field(result, "text", limit)) is not None:
            return fitted
        if encoded_size(without_text) <= limit:
            return without_text
    result = without_text.model_copy(update={"model": None})
    return _cut_field(result, "message", limit) or result.model_copy(update={"message": ""})


def _cut_field(result: RunnerResult, field: str, limit: int) -> RunnerResult | None:
    def with_value(value: str) -> RunnerResult:
        return result.model_copy(update={field: value})

    cut = cut_to_fit(getattr(result, field), lambda value: encoded_size(with_value(value)), limit)
    return None if cut is None else with_value(cut)


def _encodable(result: RunnerResult) -> RunnerResult:
    """The result with nothing that JSON in UTF-8 cannot say."""
    update: dict[str, Any] = {"message": clean(result.message)}
    if result.text is not None:
        update["text"] = clean(result.text)
    try:
        json.dumps(result.structured_output, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        update |= {"structured_output": None, "truncated": True}
    return result.model_copy(update=update)


def encoded_size(result: RunnerResult) -> int:
    """Bytes of the result's JSON."""
    return len(result.model_dump_json().encode())


class EventWriter:
    """Writes events as JSON lines, numbered from 1, each flushed at once.

    Writes go straight to the descriptor: an event is in the pod's log when the call returns, so that a killed
    runner loses nothing that it said.

    Attributes:
        redact: takes the secrets out of a text. It is applied to all that is written; whoever shortens a text
            before has to apply it first, because half a secret is not recognised any more.
    """

    def __init__(self, descriptor: int, redact: Redactor | None = None) -> None:
        self._descriptor = descriptor
        self.redact = redact or Redactor()
        self._seq = 0

    def started(self, attempt: int, sdk_version: str) -> None:
        """The runner is up."""
        self._write(Started, attempt=attempt, sdk_version=sdk_version)

    def session(self, session_id: str, model: str | None, resumed: bool) -> None:
        """The agent's session exists."""
        self._write(Session, session_id=session_id, model=model, resumed=resumed)

    def text(self, text: str) -> None:
        """The assistant said something."""
        self._write(Text, cut="text", text=self.redact(clean(text)))

    def tool_use(self, tool: str, summary: str) -> None:
        """The agent calls a tool."""
        self._write(ToolUse, tool=shorten(self.redact(tool), 200), summary=shorten(self.redact(summary), SUMMARY_CHARS))

    def tool_result(self, summary: str, is_error: bool) -> None:
        """A tool ended."""
        self._write(ToolResult, summary=shorten(self.redact(summary), SUMMARY_CHARS), is_error=is_error)

    def progress(self, percent: int, message: str) -> None:
        """The agent's task list moved on."""
        self._write(Progress, percent=percent, message=one_line(self.redact(message)))

    def api_retry(self, attempt: int, max_retries: int, delay_seconds: float, status: int | None) -> None:
        """The CLI waits to call the model API again."""
        self._write(ApiRetry, attempt=attempt, max_retries=max_retries, delay_seconds=delay_seconds, status=status)

    def notice(self, text: str, level: str = "info") -> None:
        """Something that a person should know; ``level`` is info, warning or error."""
        self._write(Notice, text=shorten(self.redact(text), SUMMARY_CHARS), level=level)

    def result(self, result: RunnerResult) -> None:
        """The whole result; the last event."""
        envelope = 200  # v, seq, time, type and the braces around them
        self._write(Result, result=fit_result(self.redact.result(result), LINE_BYTES - envelope))

    def _write(self, kind: type[Any], cut: str | None = None, **fields: Any) -> None:
        self._seq += 1
        event = kind(seq=self._seq, time=datetime.now(UTC), **fields)
        if cut is not None:
            event = _fit_event(event, cut)
        line = memoryview(event.model_dump_json().encode() + b"\n")
        while line:
            line = line[os.write(self._descriptor, line) :]


def _fit_event(event: Any, field: str) -> Any:
    def with_value(value: str) -> Any:
        return event.model_copy(update={field: value})

    def size(value: str) -> int:
        return len(with_value(value).model_dump_json().encode())

    return with_value(cut_to_fit(getattr(event, field), size, LINE_BYTES - 1) or "")


class StderrRelay:
    """Turns the agent's standard error into notices, without letting it flood the log.

    At most ``BURST`` lines in any ``WINDOW_SECONDS`` and ``TOTAL`` in all become notices; the rest is
    counted. The last lines are kept for the message of a run that ends without a result.
    """

    BURST = 20
    WINDOW_SECONDS = 10.0
    TOTAL = 200
    TAIL = 20

    def __init__(self, writer: EventWriter, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._clock = clock
        self._window_start = float("-inf")
        self._in_window = 0
        self._written = 0
        self._dropped = 0
        self._tail: list[str] = []

    def __call__(self, line: str) -> None:
        """Take one line."""
        line = self._writer.redact(line)
        self._tail = [*self._tail[1 - self.TAIL :], shorten(line, SUMMARY_CHARS)]
        now = self._clock()
        if now - self._window_start >= self.WINDOW_SECONDS:
            self._window_start, self._in_window = now, 0
        if self._in_window >= self.BURST or self._written >= self.TOTAL:
            self._dropped += 1
            return
        self._in_window += 1
        self._written += 1
        self._writer.notice(f"agent stderr: {line}", "warning")

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._tail)

    def close(self) -> None:
        """Say how much was left out, if any was."""
        if self._dropped:
            self._writer.notice(f"{self._dropped} more lines of the agent's stderr were left out", "warning")
            self._dropped = 0


def write_termination_message(path: Path, result: RunnerResult) -> OSError | None:
    """Write the result where the kubelet takes it from; the error when that cannot be done.

    Not fatal: the result is in the log too.
    """
    try:
        path.write_bytes(fit_result(result, MAX_TERMINATION_BYTES).model_dump_json().encode())
    except OSError as error:
        return error
    return None
