"""Event lines and the termination message: bounds that hold for any text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.events import (
    MAX_TERMINATION_BYTES,
    Event,
    Notice,
    Outcome,
    Result,
    RunnerResult,
    Text,
    parse_event,
    parse_result,
)
from claudejobs.runner.emit import (
    LINE_BYTES,
    EventWriter,
    StderrRelay,
    encoded_size,
    fit_result,
    one_line,
    write_termination_message,
)

TEXTS = [
    "a" * 200_000,
    "ü" * 100_000,
    "速" * 70_000,
    "\n" * 90_000,
    "\x00" * 50_000,
    "🚀" * 50_000,
    "\ud83d" * 9,
]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[EventWriter, Callable[[], list[bytes]]]]:
    """A writer and what it wrote so far."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield EventWriter(descriptor), lambda: path.read_bytes().splitlines(keepends=True)
    os.close(descriptor)


def events(lines: list[bytes]) -> list[Event]:
    parsed = [parse_event(line) for line in lines]
    assert None not in parsed
    return [event for event in parsed if event is not None]


def result(**fields: Any) -> RunnerResult:
    return RunnerResult(outcome=Outcome.COMPLETED, **fields)


@pytest.mark.parametrize("text", TEXTS)
def test_line_is_capped_between_characters(written: Any, text: str) -> None:
    writer, lines = written
    writer.text(text)
    writer.result(result(text=text))
    assert all(len(line) <= LINE_BYTES for line in lines())
    said, ended = events(lines())
    assert isinstance(said, Text)
    assert said.text.rstrip("…").strip("?") in text
    assert isinstance(ended, Result)


def test_every_kind_of_event_is_numbered_and_bounded(written: Any) -> None:
    writer, lines = written
    long = "ü" * 100_000
    writer.started(1, "0")
    writer.session("id", "model", False)
    writer.tool_use(long, long)
    writer.tool_result(long, True)
    writer.progress(50, long)
    writer.api_retry(1, 5, 0.5, 529)
    writer.notice(long, "error")
    assert [event.seq for event in events(lines())] == [1, 2, 3, 4, 5, 6, 7]
    assert all(len(line) < 10_000 for line in lines())


@pytest.mark.parametrize("text", TEXTS)
def test_termination_message_fits_in_bytes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    assert write_termination_message(path, result(text=text, message=one_line(text))) is None
    assert len(path.read_bytes()) <= MAX_TERMINATION_BYTES
    kept = parse_result(path.read_text())
    assert kept is not None
    assert kept.outcome is Outcome.COMPLETED
    assert kept.truncated == (len(text) > 9)


def test_termination_message_uses_the_room_there_is() -> None:
    fitted = fit_result(result(text="速" * 5000), MAX_TERMINATION_BYTES)
    assert MAX_TERMINATION_BYTES - 4 < encoded_size(fitted) <= MAX_TERMINATION_BYTES


def test_small_result_is_left_alone() -> None:
    small = result(text="done", structured_output={"answer": 42})
    assert fit_result(small, MAX_TERMINATION_BYTES) == small


def test_structured_output_outlives_the_text_and_is_never_cut() -> None:
    output = {"answer": "x" * 3000}
    fitted = fit_result(result(text="y" * 3000, structured_output=output), MAX_TERMINATION_BYTES)
    assert (fitted.structured_output, fitted.truncated) == (output, True)
    dropped = fit_result(result(text="y" * 100, structured_output={"a": "x" * 5000}), MAX_TERMINATION_BYTES)
    assert (dropped.structured_output, dropped.text, dropped.truncated) == (None, "y" * 100, True)


@pytest.mark.parametrize("output", [{"a": "\ud83d"}, {"a": float("nan")}, {"a": object()}])
def test_structured_output_that_is_not_json_is_dropped(output: Any) -> None:
    fitted = fit_result(result(structured_output=output), MAX_TERMINATION_BYTES)
    assert (fitted.structured_output, fitted.truncated) == (None, True)


def test_unwritable_termination_log_is_reported_not_raised(tmp_path: Path) -> None:
    assert isinstance(write_termination_message(tmp_path / "no" / "log", result()), FileNotFoundError)


def test_stderr_is_limited_in_rate_and_in_all(written: Any) -> None:
    writer, lines = written
    now = 0.0
    relay = StderrRelay(writer, clock=lambda: now)
    for number in range(30):
        relay(f"line {number}")
    assert len(lines()) == StderrRelay.BURST
    for _ in range(50):
        now += StderrRelay.WINDOW_SECONDS
        for number in range(30):
            relay(f"line {number}")
    assert len(lines()) == StderrRelay.TOTAL
    relay.close()
    *_, last = events(lines())
    assert isinstance(last, Notice)
    assert last.text.startswith(f"{51 * 30 - StderrRelay.TOTAL} more lines")
    assert relay.tail.splitlines()[-1] == "line 29"
