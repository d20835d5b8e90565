"""Election of the one operator that acts, over a Lease of the API server.

How two operators never act at once:

- A candidate takes the lease over only when the record has not changed for the record's own duration, measured on
  the candidate's clock since the candidate saw the change. No machine's time of day is compared with another's.
- The leader counts from when it *sent* its last successful renewal, which is before anybody can have seen it, and
  stops acting after the renew deadline, which is shorter than the duration. ``Election.left`` tells each write how
  long it may take; the difference between the two is for what is under way when the deadline passes.
- Every write of the record is guarded by its resourceVersion, so of two candidates one gets a conflict.

Whoever loses the lease does not go on as a standby: it cancels what acts, and the process ends and is started again,
because only a fresh process is certain to hold nothing of its former term.

This is not taken from ``kubernetes.aio``, whose election leaves the leading task running when a renewal fails.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from claudejobs.settings import Settings

from .client import ApiError, Fence, KubeClient, leases_path

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT = 2.0
"""Seconds that giving the lease up may take; if it takes longer, the successor waits for it to run out."""

_SHORTEST_WAIT = 0.05


def clock() -> float:
    """Seconds, of which also those count that the process was stopped or the machine asleep; ``time.monotonic`` leaves
    the latter out. A virtual machine that its host pauses sees the pause by no such clock: then only the
    resourceVersions, UIDs and names in the writes themselves protect."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def new_identity() -> str:
    """A name for this process that no other has or will have: the pod's (its host name), and chance."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes:
        duration: how long others leave the lease alone after its last renewal.
        deadline: how long after its last successful renewal the leader acts.
        retry: between two renewals, and between two looks of a standby.
    """

    duration: float
    deadline: float
    retry: float


@dataclass(frozen=True)
class Record:
    """What matters of a Lease.

    Attributes:
        holder: identity of the leader, empty when it was given up.
        duration: seconds, as its holder wrote it.
        renewed: the holder's time of day; only compared for being the same as before.
        transitions: how often the holder has changed.
        version: resourceVersion.
    """

    holder: str
    duration: float
    renewed: str
    transitions: int
    version: str

    @classmethod
    def of(cls, lease: dict[str, Any]) -> Record:
        """From the API's JSON; also a Lease that somebody made by hand, with nothing in it."""
        spec = lease.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            duration=float(spec.get("leaseDurationSeconds") or 0),
            renewed=spec.get("renewTime") or "",
            transitions=spec.get("leaseTransitions") or 0,
            version=lease["metadata"]["resourceVersion"],
        )

    def renewal_of(self, other: Record | None) -> bool:
        """Whether a holder wrote this since ``other``; a label set by somebody else renews nothing."""
        if other is None:
            return True
        return (self.holder, self.renewed, self.transitions) != (other.holder, other.renewed, other.transitions)


class Action(Enum):
    """What a candidate does next."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"
    LOSE = "lose"


@dataclass(frozen=True)
class Step:
    """The next action.

    Attributes:
        wait: seconds until the next look, for WAIT.
        reason: why leadership is lost, for LOSE.
    """

    action: Action
    wait: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """What a process knows of the lease. Times are this process's ``clock``.

    Attributes:
        record: the lease as last seen, ``None`` when it did not exist (or was never looked at).
        free_at: when the lease may be taken, if its record does not change before.
        acted: when the last own write that succeeded was *sent*; ``None`` when not leading.
    """

    identity: str
    timing: Timing
    record: Record | None = None
    free_at: float = float("-inf")
    acted: float | None = None

    def saw(self, record: Record | None, now: float) -> Candidate:
        """The lease was looked at. That it is gone does not free it: its holder may not know yet."""
        if record is None or not record.renewal_of(self.record):
            return replace(self, record=record)
        free_at = now + (record.duration or self.timing.duration) if record.holder else float("-inf")
        return replace(self, record=record, free_at=free_at)

    def wrote(self, record: Record, sent: float) -> Candidate:
        """A write of this process, sent at ``sent``, has made it the holder."""
        return replace(self, record=record, acted=sent)

    def left(self, now: float) -> float:
        """Seconds for which this process may still act; not positive when it may not."""
        return float("-inf") if self.acted is None else self.acted + self.timing.deadline - now

    def step(self, now: float) -> Step:
        """Decide."""
        record, mine = self.record, self.record is not None and self.record.holder == self.identity
        if self.acted is not None:
            if self.left(now) <= 0:
                return Step(Action.LOSE, reason=f"it was not renewed for {now - self.acted:.1f} s")
            if record is None:
                return Step(Action.LOSE, reason="somebody deleted it")
            if not mine:
                return Step(Action.LOSE, reason=f"{record.holder or 'nobody'} holds it")
            return Step(Action.RENEW)
        if mine:  # taken by a write whose answer never came
            return Step(Action.TAKE)
        if now < self.free_at:
            # The moment at which it runs out is not slept past, so that a takeover costs no extra interval.
            return Step(Action.WAIT, wait=max(_SHORTEST_WAIT, min(self.timing.retry, self.free_at - now)))
        return Step(Action.CREATE if record is None else Action.TAKE)


class Election:
    """Stands for leader until it is one, then renews until the lease is lost or given up. For one event loop.

    Attributes:
        acquired: set when this process leads.
        lost: set when it does so no more, or when the election itself failed; what acts must then be cancelled and
            the process must end.
        reason: why it was lost.
    """

    def __init__(self, client: KubeClient, identity: str, settings: Settings) -> None:
        """``client`` must be one without a fence: to renew is what opens the fence."""
        assert settings.lease_namespace is not None
        self._client = client
        self._path = leases_path(settings.lease_namespace)
        self._name = settings.lease_name
        self._where = f"lease {settings.lease_namespace}/{settings.lease_name}"
        timing = Timing(settings.lease_duration, settings.lease_renew_deadline, settings.lease_retry)
        self._candidate = Candidate(identity, timing)
        self._task: asyncio.Task[None] | None = None
        self._looked: float | None = None
        self._warned = ""
        self.acquired = asyncio.Event()
        self.lost = asyncio.Event()
        self.reason = ""

    def left(self) -> float:
        """Seconds that a write which is sent now may take; not positive when none may be sent."""
        return float("-inf") if self.lost.is_set() else self._candidate.left(clock())

    @property
    def fence(self) -> Fence:
        """For the client of what acts while this process leads."""
        timing = self._candidate.timing
        return Fence(self.left, timing.duration - timing.deadline)

    @property
    def standing_by(self) -> bool:
        """Whether this process could take over: the API server has told it of the lease not long ago."""
        return self._looked is not None and clock() - self._looked <= self._candidate.timing.duration

    def start(self) -> None:
        """Stand for leader, in the background."""
        self._task = asyncio.create_task(self._run(), name="election")

    async def stop(self) -> None:
        """Stop, and give the lease up if it is held: call this when nothing acts any more."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        held = self.left()
        # From here on the fence is shut, whether or not the successor learns of it at once.
        self._candidate = replace(self._candidate, acted=None)
        if held > 0:
            try:
                await asyncio.wait_for(self._release(), min(held, RELEASE_TIMEOUT))
            except (ApiError, TimeoutError) as error:
                logger.warning("%s could not be given up, and runs out: %s", self._where, error)

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(await self._turn())
                if self.lost.is_set():
                    return
        except Exception as error:
            logger.exception("the election failed")
            self._lose(f"the election failed: {type(error).__name__}")

    async def _turn(self) -> float:
        """One step; returns after how many seconds to take the next."""
        if self._candidate.acted is None and not await self._look():
            return self._candidate.timing.retry
        step = self._candidate.step(clock())
        if step.action is Action.LOSE:
            self._lose(step.reason)
            return 0
        if step.action is Action.WAIT:
            return step.wait
        wait = await self._write(step.action)
        left = self._candidate.left(clock())
        # Awake when the deadline passes, so that what acts is cancelled then and not an interval later.
        return max(0.0, min(wait, left)) if self._candidate.acted is not None else wait

    async def _look(self) -> bool:
        """See the lease as it is now; whether the API server told."""
        try:
            lease = await self._client.get(f"{self._path}/{self._name}", timeout=self._timeout())
        except ApiError as error:
            self._warn(f"cannot be read: {error}")
            return False
        self._looked = clock()
        self._candidate = self._candidate.saw(Record.of(lease) if lease else None, self._looked)
        return True

    async def _write(self, action: Action) -> float:
        """Create, take or renew; returns the seconds until the next step."""
        retry = self._candidate.timing.retry
        sent = clock()
        try:
            lease = await self._send(action)
        except ApiError as error:
            if error.status in (404, 409) and await self._look():
                # Somebody else wrote; if this process holds the lease all the same, it renews at once.
                return _SHORTEST_WAIT if action is Action.RENEW else retry
            self._warn(f"cannot be written: {error}")
            return retry / 2
        self._warned = ""
        self._candidate = self._candidate.wrote(Record.of(lease), sent)
        if action is not Action.RENEW and self.left() > 0:
            logger.info("leading", extra={"lease": self._where, "identity": self._candidate.identity})
            self.acquired.set()
        return retry

    async def _send(self, action: Action) -> dict[str, Any]:
        candidate, now = self._candidate, _micro_time()
        spec: dict[str, Any] = {
            "holderIdentity": candidate.identity,
            "leaseDurationSeconds": int(candidate.timing.duration),
            "renewTime": now,
        }
        if action is Action.CREATE:
            spec |= {"acquireTime": now, "leaseTransitions": 0}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            created: dict[str, Any] = await self._client.request(
                "POST", self._path, lease | {"spec": spec}, timeout=self._timeout()
            )
            return created
        assert candidate.record is not None
        if action is Action.TAKE:
            spec |= {"acquireTime": now, "leaseTransitions": candidate.record.transitions + 1}
        return await self._patch(candidate.record, spec, self._timeout())

    async def _patch(self, record: Record, spec: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Write over the lease, unless it has changed since ``record`` (ApiError 409)."""
        answer: dict[str, Any] = await self._client.request(
            "PATCH",
            f"{self._path}/{self._name}",
            {"metadata": {"resourceVersion": record.version}, "spec": spec},
            content_type="application/merge-patch+json",
            timeout=timeout,
        )
        return answer

    async def _release(self) -> None:
        """Empty the holder. A renewal that was cancelled under way may have changed the record: then again."""
        for _ in range(3):
            record = self._candidate.record
            if record is None or record.holder != self._candidate.identity:
                return
            spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
            try:
                await self._patch(record, spec, RELEASE_TIMEOUT)
            except ApiError as error:
                if error.status != 409 or not await self._look():
                    raise
            else:
                logger.info("gave the leadership up", extra={"lease": self._where})
                return

    def _timeout(self) -> float:
        """Seconds for one request: half the deadline, so that a lost answer costs one try and not the term."""
        timing = self._candidate.timing
        limit = timing.deadline / 2
        return limit if self._candidate.acted is None else max(_SHORTEST_WAIT, min(limit, self.left()))

    def _lose(self, reason: str) -> None:
        self.reason = reason
        self.lost.set()

    def _warn(self, text: str) -> None:
        # Once per cause, not once per try.
        if text != self._warned:
            logger.warning("%s %s", self._where, text)
        self._warned = text


def _micro_time() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
