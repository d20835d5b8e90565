"""How the gateway says no: in the words and statuses of the Messages API, so that the agent's client understands."""

from __future__ import annotations

import math


class RefusedError(Exception):
    """A request is not passed on.

    Attributes:
        status: HTTP status.
        kind: the API's type of the error.
        reason: why, in one word, for metrics.
        retry_after: seconds after which another try makes sense, or ``None``.
    """

    def __init__(self, status: int, kind: str, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, object]:
        """The answer's JSON."""
        return {"type": "error", "error": {"type": self.kind, "message": f"claudejobs gateway: {self.message}"}}

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers of its own."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def unauthenticated(message: str) -> RefusedError:
    """Nobody knows who calls."""
    return RefusedError(401, "authentication_error", "unauthenticated", message)


def forbidden(message: str) -> RefusedError:
    """The caller is known, and is no running attempt of a job."""
    return RefusedError(403, "permission_error", "forbidden", message)


def not_yet(message: str) -> RefusedError:
    """The caller will be known soon; the client tries again by itself."""
    return RefusedError(503, "api_error", "not_yet", message, retry_after=1)


def limited(reason: str, message: str, retry_after: float) -> RefusedError:
    """Too many requests."""
    return RefusedError(429, "rate_limit_error", reason, message, retry_after)
