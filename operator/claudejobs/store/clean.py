"""Makes text and JSON storable: PostgreSQL takes no NUL bytes and no lone surrogates, JSON no NaN."""

from __future__ import annotations

import math
from typing import Any

from claudejobs.api.process_state import LogLine, ProcessState

MAX_LINE_CHARS = 256 * 1024
"""Longest log line kept in ``process_logs``; the runner's own lines are no longer than this."""


def clean_text(text: str) -> str:
    """Return ``text`` without NUL characters and lone surrogates; the same object when there are none."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="ignore").decode()
    return text


def clean_json(value: Any) -> Any:
    """Return ``value`` as JSON that both databases accept: NaN and infinities become null."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return value


def clean_row(row: ProcessState) -> ProcessState:
    """Return ``row`` with text, metadata and cost made storable."""
    update: dict[str, Any] = {}
    for name, value in row.__dict__.items():
        if type(value) is str:
            cleaned: Any = clean_text(value)
        elif type(value) is dict or type(value) is float:
            cleaned = clean_json(value)
        else:
            continue
        if cleaned is not value and cleaned != value:
            update[name] = cleaned
    return row.model_copy(update=update) if update else row


def clean_line(line: LogLine) -> LogLine:
    """Return ``line`` with its text made storable and cut to ``MAX_LINE_CHARS``."""
    text, stream = clean_text(line.line[:MAX_LINE_CHARS]), clean_text(line.stream)
    if text == line.line and stream == line.stream:
        return line
    return line.model_copy(update={"line": text, "stream": stream})
