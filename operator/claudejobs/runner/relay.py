"""From the SDK's messages to events, and what the run's end needs to know of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    ServerToolUseBlock,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from .emit import EventWriter, shorten
from .progress import TaskList

BACKOFF_FIRST_SECONDS = 0.5
"""The CLI's own first delay; it doubles, with some jitter."""

SUMMARY_FIELDS = (
    "command",
    "file_path",
    "notebook_path",
    "pattern",
    "url",
    "query",
    "subject",
    "description",
)
REJECTED_STATUSES = (401, 403)


class Relay:
    """Takes the messages of one process of the agent: writes the events and keeps the facts.

    Attributes:
        result: the last result; with background agents there are several, and the last one counts.
        label: the ``error`` of the last assistant message, ``None`` after one without.
        retry_status: HTTP status of the last retried API error.
        retry_after: seconds that the model API asked to wait, where that can be told.
        rejected: the API said that the credentials are wrong; the CLI would go on trying.
        last_sign: when the last message came, on ``clock``.
        spoke: the model (or an error in its place) answered: the transcript holds the prompt.
        text: what the assistant said last.
    """

    def __init__(
        self,
        writer: EventWriter,
        tasks: TaskList,
        resumed: bool,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._tasks = tasks
        self._resumed = resumed
        self._clock = clock
        self._wall = wall
        self._outstanding: set[str] = set()
        self._turns: set[str] = set()
        self.started = False
        self.model: str | None = None
        self.result: ResultMessage | None = None
        self.label: str | None = None
        self.retry_status: int | None = None
        self.retry_after: float | None = None
        self.rejected = False
        self.spoke = False
        self.last_sign = clock()

    @property
    def silent_seconds(self) -> float:
        """How long nothing came, 0 while a tool runs: only the job's timeout bounds a tool."""
        return 0.0 if self._outstanding else self._clock() - self.last_sign

    @property
    def turns(self) -> int:
        """Answers of the model in the main conversation."""
        return len(self._turns)

    def take(self, message: Message) -> None:
        """Take one message."""
        self.last_sign = self._clock()
        if isinstance(message, AssistantMessage):
            self._assistant(message)
        elif isinstance(message, UserMessage):
            self._user(message)
        elif isinstance(message, ResultMessage):
            self._result(message)
        elif isinstance(message, RateLimitEvent):
            self._rate_limit(message)
        elif isinstance(message, SystemMessage):
            self._system(message)

    def _system(self, message: SystemMessage) -> None:
        data = message.data
        if message.subtype == "init" and not self.started:
            self.started = True
            self.model = data.get("model")
            self._writer.session(str(data.get("session_id", "")), self.model, self._resumed)
        elif message.subtype == "api_retry":
            self._api_retry(data)
        elif message.subtype == "compact_boundary":
            self._writer.notice("the conversation was compacted")

    def _api_retry(self, data: dict[str, Any]) -> None:
        attempt = _number(data.get("attempt"), 1)
        delay = _number(data.get("retry_delay_ms"), 0) / 1000
        status = data.get("error_status")
        self.retry_status = status if isinstance(status, int) else None
        self.rejected = self.retry_status in REJECTED_STATUSES
        # Retry-After is not told, but is a floor for the delay: more than the CLI's backoff is its doing.
        asked = delay > 2 * BACKOFF_FIRST_SECONDS * 2 ** (attempt - 1)
        self.retry_after = delay if self.retry_status == 429 and asked else None
        self._writer.api_retry(int(attempt), int(_number(data.get("max_retries"), 0)), delay, self.retry_status)

    def _rate_limit(self, message: RateLimitEvent) -> None:
        info = message.rate_limit_info
        if info.status == "rejected":
            if info.resets_at is not None:
                self.retry_after = max(0.0, info.resets_at - self._wall())
            self._writer.notice(f"rate limit {info.rate_limit_type or ''} rejected the request", "warning")

    def _assistant(self, message: AssistantMessage) -> None:
        self.spoke = True
        self.label = message.error
        if message.parent_tool_use_id is None and message.error is None:
            self._turns.add(message.message_id or str(len(self._turns)))
        for block in message.content:
            if isinstance(block, TextBlock) and message.error is not None:
                self._writer.notice(f"{message.error}: {block.text}", "error")
            elif isinstance(block, TextBlock):
                self._writer.text(block.text)
            elif isinstance(block, ToolUseBlock):
                self._outstanding.add(block.id)
                self._tasks.called(block.id, block.name, block.input)
                self._writer.tool_use(block.name, summary_of(block.input, redact=self._writer.redact))
            elif isinstance(block, ServerToolUseBlock):
                self._writer.tool_use(block.name, summary_of(block.input, redact=self._writer.redact))

    def _user(self, message: UserMessage) -> None:
        for block in message.content if isinstance(message.content, list) else ():
            if isinstance(block, ToolResultBlock):
                self._outstanding.discard(block.tool_use_id)
                failed = bool(block.is_error)
                self._writer.tool_result(text_of(block.content), failed)
                if self._tasks.ended(block.tool_use_id, failed, message.tool_use_result):
                    self._writer.progress(self._tasks.percent, self._tasks.message)

    def _result(self, message: ResultMessage) -> None:
        self.result = message
        self._outstanding.clear()
        denied = sorted({str(d.get("tool_name")) for d in message.permission_denials or [] if isinstance(d, dict)})
        if denied:
            self._writer.notice(f"permission was denied for: {', '.join(denied)}", "warning")


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def summary_of(tool_input: dict[str, Any], limit: int = 300, redact: Callable[[str], str] = str) -> str:
    """A tool call in short: its telling field, or else its JSON. ``redact`` sees the text before it is shortened."""
    for field in SUMMARY_FIELDS:
        value = tool_input.get(field)
        if isinstance(value, str) and value:
            return shorten(redact(value), limit)
    return shorten(redact(json.dumps(tool_input, ensure_ascii=False, default=str)), limit)


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a tool's result; other parts by their type."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or f"[{part.get('type')}]") for part in content)
    return content or ""
