"""When a request has to wait: rates of jobs and namespaces, and models whose API asked for a pause. No I/O."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from .refusal import limited

MAX_BUCKETS = 20_000
MAX_MODELS = 1000

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds that a model is closed after a 429 or 529 which does not say for how long: it doubles from the first on."""

PROBE_SECONDS = 30.0
"""A probe that has no answer by then does not keep others from trying."""

SPREAD = 0.2
"""Part of a pause by which the answers differ, so that a thousand jobs do not come back in the same moment."""


class Rate:
    """At most so many requests per minute for each key, all at once if need be."""

    def __init__(self, per_minute: int | None, what: str, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._what = what
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, key: str) -> None:
        """Count a request.

        Raises:
            RefusedError: 429, with the time after which there is room.
        """
        if self._per_minute is None:
            return
        now, most = self._clock(), float(self._per_minute)
        left, since = self._buckets.get(key, (most, now))
        left = min(most, left + (now - since) * most / 60)
        if left < 1:
            message = f"more than {self._per_minute} requests per minute of one {self._what}"
            raise limited(f"{self._what}_rate", message, (1 - left) * 60 / most)
        self._buckets[key] = (left - 1, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)


@dataclass
class _Closed:
    until: float
    refusals: int = 1
    probing_until: float = 0.0


class Closures:
    """Models that are closed because the API answered 429 or 529. When the time is over, one request probes; the
    others wait until it is answered."""

    def __init__(
        self,
        longest: float,
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._longest = longest
        self._clock = clock
        self._chance = chance
        self._closed: OrderedDict[str, _Closed] = OrderedDict()

    @property
    def models(self) -> list[str]:
        """Those that are closed, or have not been found open again."""
        return list(self._closed)

    def enter(self, model: str) -> bool:
        """Let a request through, or not; whether it is the probe, of which ``leave`` must be told.

        Raises:
            RefusedError: 429, with the time that is left.
        """
        closed = self._closed.get(model)
        if closed is None:
            return False
        now = self._clock()
        if now >= closed.until and now >= closed.probing_until:
            closed.probing_until = now + PROBE_SECONDS
            return True
        left = closed.until - now
        wait = left * (1 + SPREAD * self._chance()) if left > 0 else 1 + self._chance()
        raise limited("closed", f"the model API asked for a pause for {model}", max(1.0, wait))

    def answered(self, model: str, status: int, retry_after: str | None) -> None:
        """Take note of how the API answered a request that was let through."""
        closed = self._closed.get(model)
        if status not in (429, 529):
            # A good answer to a request from before the pause says nothing about the pause.
            if closed and self._clock() >= closed.until:
                del self._closed[model]
            return
        refusals = closed.refusals + 1 if closed else 1
        asked = seconds_of(retry_after)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(refusals - 1, 10)) if asked is None else asked
        until = self._clock() + min(pause, self._longest)
        # Requests that were under way together are refused together: that is one refusal, and the longest pause.
        if closed and closed.until > self._clock():
            closed.until = max(closed.until, until) if asked is not None else closed.until
            return
        self._closed[model] = _Closed(until, refusals)
        while len(self._closed) > MAX_MODELS:
            self._closed.popitem(last=False)

    def leave(self, model: str) -> None:
        """A probe ended without an answer: another may try."""
        if closed := self._closed.get(model):
            closed.probing_until = 0.0


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds; ``None`` when there is none or it is a date, which the API does not send."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
