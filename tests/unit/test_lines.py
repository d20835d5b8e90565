"""Lines of a log, whatever the chunks that they arrive in and however long they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.events import MAX_LINE_BYTES
from claudejobs.kube.lines import LineSplitter, split_timestamp, stamp_key


@given(lines=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b""))), data=st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream, splitter, found = b"".join(line + b"\n" for line in lines), LineSplitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found + splitter.flush() == lines


def test_a_last_line_without_an_end_is_kept() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"a\nb") == [b"a"]
    assert splitter.flush() == [b"b"]
    assert splitter.flush() == []


def test_a_line_without_end_is_cut_and_the_next_is_whole() -> None:
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 65536) == []
    cut, following = splitter.feed(b"xx\nnext\n")
    assert MAX_LINE_BYTES <= len(cut) <= MAX_LINE_BYTES + 64
    assert following == b"next"


@pytest.mark.parametrize(
    ("line", "stamp", "text"),
    [
        (b"2026-03-01T12:00:00.123456789Z hello world", "2026-03-01T12:00:00.123456789Z", b"hello world"),
        (b"2026-03-01T12:00:00Z ", "2026-03-01T12:00:00Z", b""),
        (b"2026-03-01T14:00:00.5+02:00 x", "2026-03-01T14:00:00.5+02:00", b"x"),
        (b"failed to try resolving symlinks", "", b"failed to try resolving symlinks"),
        (b"2026T is not a time", "", b"2026T is not a time"),
        (b"2026-03-01T12:00:00Z", "", b"2026-03-01T12:00:00Z"),
        (b"", "", b""),
    ],
)
def test_a_timestamp_is_told_from_text(line: bytes, stamp: str, text: bytes) -> None:
    assert split_timestamp(line) == (stamp, text)


@pytest.mark.parametrize(
    ("stamp", "key"),
    [
        ("2026-03-01T12:00:00Z", ("2026-03-01T12:00:00", 0)),
        ("2026-03-01T12:00:00.5Z", ("2026-03-01T12:00:00", 500_000_000)),
        ("2026-03-01T12:00:00.000000001Z", ("2026-03-01T12:00:00", 1)),
        ("2026-03-01T14:00:00.25+02:00", ("2026-03-01T12:00:00", 250_000_000)),
        ("2026-03-01T06:30:00-05:30", ("2026-03-01T12:00:00", 0)),
    ],
)
def test_timestamps_are_ordered_by_time_and_not_by_text(stamp: str, key: tuple[str, int]) -> None:
    assert stamp_key(stamp) == key
