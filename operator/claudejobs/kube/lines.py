"""Cuts a log stream into lines, and never trusts their length."""

from __future__ import annotations

from claudejobs.api.events import MAX_LINE_BYTES

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


def split_timestamp(line: bytes) -> tuple[str, bytes]:
    """The kubelet's timestamp and the text; the timestamp is empty when the line has none."""
    stamp, space, text = line.partition(b" ")
    if space and len(stamp) <= 40 and stamp[:4].isdigit() and b"T" in stamp:
        return stamp.decode("ascii", "replace"), text
    return "", line


def stamp_key(stamp: str) -> tuple[str, int]:
    """Order of timestamps: whole seconds, nanoseconds. Their fraction has no fixed length, so text order is wrong."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    digits = "".join(c for c in fraction if c.isdigit())[:9]
    return seconds, int(digits.ljust(9, "0")) if digits else 0
