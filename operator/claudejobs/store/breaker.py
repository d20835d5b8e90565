"""A circuit breaker with exponential backoff and jitter; knows nothing of databases."""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class Breaker:
    """Says whether the database may be tried now.

    Closed: yes. Open: not before the backoff is over. Then half-open: one try, whose outcome closes it or
    doubles the backoff.
    """

    def __init__(
        self,
        initial: float,
        maximum: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._initial, self._maximum = initial, maximum
        self._monotonic, self._jitter = monotonic, jitter
        self._failures = 0
        self._retry_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the last try succeeded."""
        return self._failures == 0

    def wait(self) -> float:
        """Return the seconds until a try is allowed; 0 when it is allowed now."""
        return 0.0 if self.closed else max(0.0, self._retry_at - self._monotonic())

    def failed(self) -> bool:
        """Count a failure; return whether it opened a closed breaker."""
        # Half of the delay is random, so that many operators do not meet a starting server in step.
        delay = min(self._maximum, self._initial * 2.0 ** min(self._failures, 32))
        self._retry_at = self._monotonic() + delay * (0.5 + self._jitter() / 2)
        self._failures += 1
        return self._failures == 1

    def succeeded(self) -> bool:
        """Count a success; return whether it closed an open breaker."""
        was_open, self._failures = self._failures > 0, 0
        return was_open
