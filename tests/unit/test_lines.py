"""Log streams become lines, each numbered once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.events import MAX_LINE_BYTES
from claudejobs.kube.lines import LineSplitter, Reader, split_timestamp, stamp_key
from claudejobs.store import LastLog


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=8), st.integers(1, 7))
def test_lines_come_out_as_they_went_in_however_the_stream_is_cut(lines: list[bytes], size: int) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter = LineSplitter()
    out = [line for n in range(0, len(stream), size) for line in splitter.feed(stream[n : n + size])]
    assert out == lines
    assert splitter.flush() == []


def test_a_huge_line_is_cut_and_the_next_one_is_whole() -> None:
    splitter = LineSplitter()
    out = [line for _ in range(100) for line in splitter.feed(b"x" * 100_000)]
    assert out == []
    first, second = splitter.feed(b"tail\nnext\n")
    assert MAX_LINE_BYTES <= len(first) < MAX_LINE_BYTES + 100
    assert second == b"next"


def test_half_a_line_is_given_at_the_end_only() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntwo") == [b"one"]
    assert splitter.flush() == [b"two"]


@pytest.mark.parametrize(
    ("line", "stamp", "text"),
    [
        (b"2026-01-02T03:04:05.000000006Z hello", "2026-01-02T03:04:05.000000006Z", b"hello"),
        (b"2026-01-02T03:04:05Z ", "2026-01-02T03:04:05Z", b""),
        (b"2026-01-02T05:04:05.5+02:00 x", "2026-01-02T05:04:05.5+02:00", b"x"),
        (b"no stamp at all", "", b"no stamp at all"),
        (b"2026T is no time", "", b"2026T is no time"),
        (b"2026-01-02T03:04:05Z", "", b"2026-01-02T03:04:05Z"),
        (b"", "", b""),
    ],
)
def test_the_kubelets_timestamp_is_split_off(line: bytes, stamp: str, text: bytes) -> None:
    assert split_timestamp(line) == (stamp, text)


def test_timestamps_are_ordered_by_time_not_by_text() -> None:
    stamps = ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.09Z", "2026-01-02T03:04:05.1Z", "2026-01-02T03:04:06Z"]
    assert sorted(stamps, key=stamp_key) == stamps
    assert sorted(stamps) != stamps


@pytest.mark.parametrize(
    ("stamp", "key"),
    [
        ("2026-01-02T03:04:05.000000001Z", ("2026-01-02T03:04:05", 1)),
        ("2026-01-02T05:04:05.25+02:00", ("2026-01-02T03:04:05", 250_000_000)),
        ("2026-01-01T21:34:05-05:30", ("2026-01-02T03:04:05", 0)),
    ],
)
def test_a_node_may_write_its_own_time_zone(stamp: str, key: tuple[str, int]) -> None:
    assert stamp_key(stamp) == key


def stamped(micros: int, text: str = "x") -> bytes:
    return f"2026-01-02T03:04:05.{micros:06d}Z {text}".encode()


def numbers(reader: Reader, *micros: int) -> list[int | None]:
    seen = [reader.take(stamped(m)) for m in micros]
    return [line.number for line in seen if line]


def test_lines_are_numbered_from_one() -> None:
    assert numbers(Reader("p"), 1, 2, 3) == [1, 2, 3]


def test_what_a_new_stream_repeats_is_not_seen_again() -> None:
    reader = Reader("p")
    numbers(reader, 1, 2, 3)
    assert reader.since == "2026-01-02T03:04:05.000003Z"
    reader.resume()
    assert numbers(reader, 1, 2, 3, 4) == [4]


def test_a_new_operator_goes_on_where_the_store_ends() -> None:
    stored = LastLog(7, datetime(2026, 1, 2, 3, 4, 5, 3, UTC), 1)
    assert numbers(Reader("p", stored), 1, 2, 3, 4, 5) == [None, None, None, 8, 9]


def test_it_does_so_when_the_log_was_rotated_meanwhile() -> None:
    stored = LastLog(7, datetime(2026, 1, 2, 3, 4, 5, 3, UTC), 1)
    assert numbers(Reader("p", stored), 40, 50) == [8, 9]


def test_lines_of_one_microsecond_are_told_apart_by_their_count() -> None:
    stored = LastLog(7, datetime(2026, 1, 2, 3, 4, 5, 3, UTC), 2)
    assert numbers(Reader("p", stored), 2, 3, 3, 3, 4) == [None, None, None, 8, 9]


def test_events_that_a_rotation_swallowed_are_counted() -> None:
    reader = Reader("p")
    assert [reader.missing_before(event) for event in (1, 2, 5, 6, 6)] == [0, 0, 2, 0, 0]
    begun_after_a_rotation = Reader("p")
    assert [begun_after_a_rotation.missing_before(event) for event in (40, 41, 43)] == [0, 0, 1]


def test_bytes_that_are_no_text_do_not_stop_the_reader() -> None:
    seen = Reader("p").take(stamped(1)[:-1] + b"\xff\xfe")
    assert seen is not None
    assert seen.text == "\ufffd\ufffd"
