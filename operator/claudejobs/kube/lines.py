"""Cuts a log stream into lines, never trusting their length, and numbers each line once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from claudejobs.api.events import MAX_LINE_BYTES
from claudejobs.store import LastLog

_LIMIT = MAX_LINE_BYTES + 64  # room for the timestamp


class LineSplitter:
    """Splits chunks into lines. A line beyond the limit is cut, and the rest of it dropped as it arrives, so that
    memory stays bounded whatever a job prints."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that the chunk completes, without their line ends."""
        lines = []
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            self._append(part)
            lines.append(bytes(self._buffer))
            self._buffer.clear()
            self._dropping = False
        self._append(rest)
        return lines

    def flush(self) -> list[bytes]:
        """What is left when the stream has ended without a line end."""
        rest = [bytes(self._buffer)] if self._buffer else []
        self._buffer.clear()
        self._dropping = False
        return rest

    def _append(self, part: bytes) -> None:
        if self._dropping:
            return
        self._buffer += part[: _LIMIT - len(self._buffer)]
        self._dropping = len(self._buffer) >= _LIMIT


_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def split_timestamp(line: bytes) -> tuple[str, bytes]:
    """The kubelet's timestamp and the text; the timestamp is empty when the line has none."""
    stamp, space, text = line.partition(b" ")
    if space and _STAMP.fullmatch(stamp):
        return stamp.decode("ascii"), text
    return "", line


def stamp_key(stamp: str) -> tuple[str, int]:
    """Order of timestamps: whole seconds in UTC, nanoseconds. Their fraction has no fixed length, so text order is
    wrong, and a node may write them in its own time zone."""
    seconds, rest = stamp[:19], stamp[19:]
    offset = rest.lstrip(".0123456789")
    fraction = rest[1 : len(rest) - len(offset)]
    if offset not in ("", "Z"):
        utc = datetime.fromisoformat(seconds + offset).astimezone(UTC)
        seconds = utc.strftime("%Y-%m-%dT%H:%M:%S")
    return seconds, int(fraction.ljust(9, "0")) if fraction else 0


@dataclass(frozen=True)
class SeenLine:
    """One line of a log. ``number`` is None when the store has the line already."""

    number: int | None
    time: datetime
    text: str


class Reader:
    """Numbers the lines of one container's log across streams that are cut, and across operators.

    Args:
        process: the attempt's process id.
        stored: where the lines in the store end.
    """

    def __init__(self, process: str, stored: LastLog | None = None) -> None:
        self.process_id = process
        self.since: str | None = None
        """Time of the last line, from which the next stream begins."""
        self._seq = stored.seq if stored else 0
        self._stored = stored
        self._stored_left = stored.same_time if stored else 0
        self._last = ("", 0)
        self._seen_until = ("", 0)
        self._event = 0

    def resume(self) -> None:
        """A stream begins anew: what it repeats of the last whole second was seen before."""
        self._seen_until = self._last

    def take(self, raw: bytes) -> SeenLine | None:
        """The line; ``None`` when it was seen before the stream was cut."""
        stamp, text = split_timestamp(raw)
        if stamp:
            key = stamp_key(stamp)
            if key <= self._seen_until:
                return None
            self._last, self.since = key, stamp
        time = _time(self._last)
        number = None
        if not self._is_stored(time):
            self._seq += 1
            number = self._seq
        return SeenLine(number, time, text.decode("utf-8", "replace"))

    def missing_before(self, event: int) -> int:
        """How many events did not come between the one before and this; the runner numbers them without gaps.

        A kubelet that follows a log goes over to the new file when the log is rotated, and does not look into the old
        one again: what was written there last is lost when it had not read so far.
        """
        before, self._event = self._event, event
        return max(0, event - before - 1) if before else 0

    def _is_stored(self, time: datetime) -> bool:
        """The store keeps microseconds, and two lines may have the same: then as many as it has are skipped."""
        if self._stored is None or time > self._stored.time:
            return False
        if time == self._stored.time:
            self._stored_left -= 1
            return self._stored_left >= 0
        return True


def _time(key: tuple[str, int]) -> datetime:
    if not key[0]:
        return datetime.now(UTC)
    return datetime.fromisoformat(f"{key[0]}+00:00").replace(microsecond=key[1] // 1000)
