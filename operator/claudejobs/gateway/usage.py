"""Reads the tokens used from an answer of the Messages API while it passes through. Pure.

Of a stream, ``message_start`` tells the input and ``message_delta`` the totals so far; of a plain answer, ``usage``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_LINE = 2**20
"""Bytes of one line of a stream that are kept; those with usage are far shorter."""

MAX_DOCUMENT = 16 * 2**20
"""Bytes of a plain answer that are kept."""

# Inside of texts quotes are escaped, so that this is never part of what the model says.
MARK = b'"usage"'


@dataclass
class Usage:
    """Tokens of one answer.

    Attributes:
        input_tokens: without those of the cache.
        cache_write_tokens: written to the cache, for whatever time.
        cache_write_1h_tokens: those of them that are kept for an hour.
        web_searches: searches by the API's own tool, which are billed each.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_searches: int = 0

    def take(self, said: Any) -> None:
        """Take in a ``usage`` object; what it does not say stays as it was."""
        if not isinstance(said, dict):
            return
        creation = said.get("cache_creation")
        tools = said.get("server_tool_use")
        hour = creation.get("ephemeral_1h_input_tokens") if isinstance(creation, dict) else None
        searches = tools.get("web_search_requests") if isinstance(tools, dict) else None
        self.input_tokens = _count(said.get("input_tokens"), self.input_tokens)
        self.output_tokens = _count(said.get("output_tokens"), self.output_tokens)
        self.cache_read_tokens = _count(said.get("cache_read_input_tokens"), self.cache_read_tokens)
        self.cache_write_tokens = _count(said.get("cache_creation_input_tokens"), self.cache_write_tokens)
        self.cache_write_1h_tokens = min(_count(hour, self.cache_write_1h_tokens), self.cache_write_tokens)
        self.web_searches = _count(searches, self.web_searches)


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


class Meter:
    """Takes the bytes of one answer, cut anywhere.

    Attributes:
        usage: what was used, as far as it was told yet.
        model: the model that answered; ``None`` until it is told.
    """

    def __init__(self, streamed: bool) -> None:
        self._streamed = streamed
        self._buffer = bytearray()
        self._overlong = False
        self.usage = Usage()
        self.model: str | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if not self._streamed:
            self._keep(chunk, MAX_DOCUMENT)
            return
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            self._keep(part, MAX_LINE)
            self._end_line()
        self._keep(rest, MAX_LINE)

    def end(self) -> None:
        """Nothing comes any more; what came counts, even if the answer was cut."""
        if self._streamed:
            self._end_line()
        elif not self._overlong:
            self._take(_parse(self._buffer))
        self._buffer.clear()

    def _keep(self, part: bytes, limit: int) -> None:
        if self._overlong:
            return
        self._buffer += part
        if len(self._buffer) > limit:
            self._overlong = True
            self._buffer.clear()

    def _end_line(self) -> None:
        if not self._overlong and MARK in self._buffer and self._buffer.startswith(b"data:"):
            event = _parse(self._buffer[len(b"data:") :])
            kind = event.get("type")
            if kind == "message_start":
                self._take(event.get("message"))
            elif kind == "message_delta":
                self.usage.take(event.get("usage"))
        self._overlong = False
        self._buffer.clear()

    def _take(self, message: Any) -> None:
        if isinstance(message, dict):
            model = message.get("model")
            self.model = model if isinstance(model, str) else self.model
            self.usage.take(message.get("usage"))


def _parse(text: bytes | bytearray) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
