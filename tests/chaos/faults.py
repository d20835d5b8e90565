"""The faults, one of which is put into a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What goes wrong."""

    CRASH_BEFORE = "operator killed before the write is sent on"
    CRASH_AFTER = "operator killed after the write is done, before it has the answer"
    LOST_REPLY = "write done, connection cut before the answer"
    CUT_BEFORE = "connection cut before the write is sent on"
    ANSWER_409 = "write answered 409"
    ANSWER_410 = "write answered 410"
    ANSWER_429 = "write answered 429, Retry-After 1"
    ANSWER_500 = "write answered 500"
    ANSWER_503 = "write answered 503"
    STALE = "operator killed after the write, its successor lists a view from some writes ago"
    LIST_410 = "operator killed after the write, its successor's list expires at its second page"
    LIST_500 = "operator killed after the write, its successor's lists are answered 500 once"
    DROP = "watch event never delivered"
    CRASH_EVENT = "operator killed instead of being told of the event"
    CUT_WATCH = "watch connection cut after the event"
    GONE = "watch ends with ERROR 410 instead of the event"


ON_WRITE = (
    Kind.CRASH_BEFORE,
    Kind.CRASH_AFTER,
    Kind.LOST_REPLY,
    Kind.CUT_BEFORE,
    Kind.ANSWER_409,
    Kind.ANSWER_410,
    Kind.ANSWER_429,
    Kind.ANSWER_500,
    Kind.ANSWER_503,
)
ON_RESTART = (Kind.STALE, Kind.LIST_410, Kind.LIST_500)
ON_EVENT = (Kind.DROP, Kind.CRASH_EVENT, Kind.CUT_WATCH, Kind.GONE)

CRASHES = (Kind.CRASH_BEFORE, Kind.CRASH_AFTER)

ANSWERS = {
    Kind.ANSWER_409: (409, "Conflict"),
    Kind.ANSWER_410: (410, "Gone"),
    Kind.ANSWER_429: (429, "TooManyRequests"),
    Kind.ANSWER_500: (500, "InternalError"),
    Kind.ANSWER_503: (503, "ServiceUnavailable"),
}


@dataclass(frozen=True)
class Fault:
    """One fault at one point.

    Attributes:
        at: ordinal, from 1, of the operator's write, or of the event in its stream.
        stream: for faults of events: jobs or pods.
        stale: for STALE, which lists are old.
        depth: for STALE, by how many writes.
    """

    kind: Kind
    at: int
    stream: str = ""
    stale: tuple[str, ...] = ()
    depth: int = 1

    def __str__(self) -> str:
        what = f"event {self.at} of {self.stream}" if self.stream else f"write {self.at}"
        lag = f" ({' and '.join(self.stale)} by {self.depth})" if self.stale else ""
        return f"{self.kind}{lag}, {what}"
