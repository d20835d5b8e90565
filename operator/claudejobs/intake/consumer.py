"""Drains one queue: fetches as much as there is room for, holds what it fetched, and finishes it.

Four loops share one view of things and rely on none of each other's steps: what one of them missed, the next sweep
finds. ``plan`` says what is to be done with each queue job; ``handling`` does it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from claudejobs.api.queue_job import QueueJob
from claudejobs.kube.client import ApiError
from claudejobs.reconcile.views import JobView, LiveReport

from .bull import UNAVAILABLE, BullQueue, Loaded, NotHeld, Snapshot, run_id
from .connection import Client, describe
from .handling import Handler
from .listener import listen
from .mapping import progress_of
from .plan import Absent, Active, Lock, Step, plan_absent, plan_held
from .reports import Reports
from .resources import QueueView, Resources
from .turns import Turn, Turns

logger = logging.getLogger(__name__)

IN_FLIGHT = 32
"""Queue jobs whose resources are made, or whose ends are delivered, at the same time."""

POLL_SECONDS = 5.0
"""How long a queue that seemed empty is left alone when nothing is heard of it."""

RETRY_SECONDS = 30.0
"""Longest time after which what could not be done is tried again; it grows from sweep to sweep."""

TELL_SECONDS = 0.5
"""Least time between two reports of progress."""


class Consumer:
    """One queue. Made and stopped by the manager.

    Attributes:
        draining: no more is fetched, because the resource is gone.
        held: queue jobs that were locked by this queue at the last sweep.
        last_error: what went wrong last, and when (seconds since the epoch).
        snapshot: what the last sweep saw of the queue.
    """

    def __init__(
        self,
        view: QueueView,
        resources: Resources,
        client: Client,
        listening: Client,
        turns: Turns,
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called when Redis goes or is back."""
        self.draining = False
        self.connected = False
        self.last_error: tuple[str, float] | None = None
        self.snapshot: Snapshot | None = None
        self.held: frozenset[QueueJob] = frozenset()
        self.run_id: str | None = None
        self._resources = resources
        self._changed = changed
        self._listening = listening
        self._bull = BullQueue(client, view.spec.prefix, view.spec.queue_name, view.uid)
        self._reports = Reports(self._bull)
        self._handler = Handler(view, self._bull, self._reports, resources)
        self._flying: dict[str, asyncio.Task[None]] = {}
        self._begun: set[QueueJob] = set()
        self._due: set[QueueJob] = set()
        self._swept = False
        self._lost = False  # Redis has lost data, and no sweep has seen to it yet
        self._rival: tuple[str | None, float] = (None, 0.0)
        self._troubled = 0
        self._fetch_now = asyncio.Event()
        self._turns = turns
        self._turn = Turn(self._fetch_now, view.target)
        self._unborn = self._turn.unborn
        self._sweep_now = asyncio.Event()
        self._tell_now = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    @property
    def view(self) -> QueueView:
        """The resource as last seen."""
        return self._handler.view

    def update(self, view: QueueView) -> None:
        """The resource has changed."""
        self._handler.view = view
        self._fetch_now.set()
        self._sweep_now.set()

    def start(self) -> None:
        """Start the loops."""
        self._turns.join(self._turn)
        for loop in (self._sweep, self._fetch, self._tell, self._listen):
            self._loops.append(asyncio.create_task(self._repeat(loop), name=f"{loop.__name__} {self.view.qualified}"))

    async def stop(self, timeout: float) -> None:
        """Stop, once what is under way has ended or ``timeout`` seconds have passed. What is held stays locked, and the
        next process goes on with it."""
        self._turns.leave(self._turn)
        for task in self._loops:
            task.cancel()
        if self._flying:
            await asyncio.wait(list(self._flying.values()), timeout=timeout)
        tasks = [*self._loops, *self._flying.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)  # the end of the process must not wait for a library for ever

    # What the controller tells. Nothing here waits.

    def job_changed(self, job: JobView, live: LiveReport | None) -> None:
        """A job of this queue was looked at."""
        assert job.queue_job is not None
        if job.status.phase.terminal:
            if job.queue_job in self._begun or job.queue_job in self.held:
                self._due.add(job.queue_job)
                self._tell_now.set()
        elif job.status.attempt:
            percent = max(job.status.progress, live.progress if live else 0)
            step = live.step if live else ""
            self._reports.progress(job.queue_job, progress_of(job.status, percent, step, self.view.spec.progress))

    def job_gone(self, job: JobView) -> None:
        """A job of this queue was deleted."""
        self._handler.settled.discard(job.uid)
        self._sweep_now.set()

    def job_said(self, identity: QueueJob, text: str) -> None:
        """A line of a job's log."""
        self._reports.say(identity, text)

    def waits(self, job: JobView) -> bool:
        """Whether the job's end was not told to its producer yet."""
        return job.uid not in self._handler.settled

    @property
    def idle(self) -> bool:
        """Whether nothing is held any more, nor was fetched since the last sweep, nor may be by what is under way."""
        return self._swept and not (self.held or self._begun or self._flying or self._turn.fetching)

    @property
    def rival(self) -> str | None:
        """UID of the ClaudeCodeQueue by which another operator, which sees other jobs, drains the queue as well; after
        a lock's life in which nothing is seen of it, it is taken to be gone."""
        uid, seen = self._rival
        return uid if time.monotonic() - seen < self.view.spec.lock_seconds else None

    # The loops.

    async def _repeat(self, turn: Callable[[], Awaitable[None]]) -> None:
        delay = 0.25
        while True:
            try:
                await turn()
                delay = 0.25
            except Exception as error:
                self._note(error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    async def _sweep(self) -> None:
        """Renew all locks, and do what the queue jobs need that are held, or were."""
        began, spec = time.monotonic(), self.view.spec
        self._sweep_now.clear()
        before = set(self._begun)
        kept = await self._bull.recall()
        self._note_rival(kept.get("sweeper"))
        active = await self._bull.sweep(self._handler.lock_ms)
        # Redis may answer and yet refuse to write: out of memory, or a replica. Then nothing can be fetched or told.
        await self._bull.remember(sweeper=self.view.uid)
        self._back()
        self.held = frozenset(one.identity for one in active if one.lock is Lock.OURS)
        self._begun -= before  # each of them is held by now, or finished
        self._unborn &= self.held | self._begun
        absent = self._absent(active)
        found = await self._bull.look_up([identity.id for identity, _ in absent])
        # Asked last: whatever was missing above was missing in this process of Redis, or in one before it.
        current = await run_id(self._bull.client)
        self._lost = lost = current != kept.get("run_id")
        if lost and self._flying:
            # What is under way is planned for by no sweep; whether Redis has lost it must be seen by this one. Nothing
            # more is begun until then.
            await asyncio.wait(list(self._flying.values()), timeout=spec.lock_seconds / 4)
            return
        self._reports.retain({one.identity for one in active} | self._begun | {identity for identity, _ in absent})
        done = await self._carry_out(self._plan_held(active) + _plan_absent(absent, found, lost))
        self._lost = False
        snapshot = await self._bull.snapshot()
        if not snapshot.old_pause:
            await self._bull.return_stalled(spec.lock_seconds * 250)
        if lost and done:
            await self._bull.remember(run_id=current)
        self.run_id, self.snapshot = current, snapshot
        if not self._swept:
            self._swept = True
            self._fetch_now.set()
        await _wait(self._sweep_now, spec.lock_seconds / 4 - (time.monotonic() - began))
        await asyncio.sleep(0.2)  # of many events one sweep is made

    def _plan_held(self, active: Sequence[Active]) -> list[_Work]:
        work: list[_Work] = []
        for one in active:
            if one.identity.id not in self._flying:
                job = self._resources.find(self.view, one.identity)
                work.append((plan_held(one, job), one.identity, job))
        return work

    def _absent(self, active: Sequence[Active]) -> list[tuple[QueueJob, JobView]]:
        """The resources whose queue jobs are not active, and of which something may still be to do."""
        here = {one.identity for one in active}
        return [
            (job.queue_job, job)
            for job in self._resources.of_queue(self.view)
            if job.queue_job
            and job.queue_job not in here
            and job.queue_job.id not in self._flying
            and job.uid not in self._handler.settled
        ]

    async def _carry_out(self, work: Sequence[_Work]) -> bool:
        """Some at a time; one that fails is planned again by the next sweep, and keeps no other back.

        Returns:
            Whether all losses were noted.
        """
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(steps: Sequence[Step], identity: QueueJob, job: JobView | None) -> None:
            async with slots:
                if Step.CREATE in steps:
                    self._unborn.add(identity)
                for step in steps:
                    await self._handler.do(step, identity, job)
                self._turns.born(self._turn, identity)

        work = [each for each in work if each[0]]
        outcomes = await asyncio.gather(*(one(*each) for each in work), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            self._note(failure)
        self._troubled = self._troubled + 1 if failures else 0
        if failures:
            asyncio.get_running_loop().call_later(min(2.0**self._troubled, RETRY_SECONDS), self._sweep_now.set)
        failed = [steps for (steps, _, _), outcome in zip(work, outcomes, strict=True) if outcome is not None]
        return not any(Step.MARK_LOST in steps for steps in failed)

    async def _fetch(self) -> None:
        """Take queue jobs while there is room for them, and it is this queue's turn."""
        self._fetch_now.clear()
        while self._may_fetch() and self._turns.take(self._turn, self.view.spec.look_ahead):
            try:
                fetched = await self._bull.fetch(self._handler.lock_ms)
            except BaseException:
                self._turns.pass_on(self._turn)
                raise
            self._turns.taken(self._turn, fetched.identity if fetched else None)
            if fetched is None:
                break
            self._begun.add(fetched.identity)
            await self._fly(fetched.identity, self._begin(fetched))
        if not self._may_fetch():
            self._turns.pass_on(self._turn)
        await _wait(self._fetch_now, POLL_SECONDS)

    async def _begin(self, fetched: Loaded) -> None:
        await self._handler.begin(fetched)
        self._turns.born(self._turn, fetched.identity)

    def _may_fetch(self) -> bool:
        # Not before the first sweep: what was fetched before a crash comes first, and Redis is known to answer.
        return self._swept and self.connected and not self._lost and not self.view.spec.suspend and not self.draining

    async def _tell(self) -> None:
        """Send progress and log lines, and the ends of jobs."""
        await _wait(self._tell_now, TELL_SECONDS)
        self._tell_now.clear()
        await self._reports.flush()
        for identity in [identity for identity in self._due if identity.id not in self._flying and not self._lost]:
            self._due.discard(identity)
            job = self._resources.find(self.view, identity)
            if job and job.status.phase.terminal and job.uid not in self._handler.settled:
                await self._fly(identity, self._handler.do(Step.DELIVER, identity, job))

    async def _listen(self) -> None:
        await listen(self._bull, self._listening, fetch_now=self._fetch_now, sweep_now=self._sweep_now)

    async def _fly(self, identity: QueueJob, work: Awaitable[None]) -> None:
        """Start work on one queue job; waits while too much is going on."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._note(error)
                asyncio.get_running_loop().call_later(1.0, self._sweep_now.set)
            finally:
                self._flying.pop(identity.id, None)

        self._flying[identity.id] = asyncio.create_task(run(), name=f"queue job {identity.id}")
        while len(self._flying) >= IN_FLIGHT:
            await asyncio.wait(list(self._flying.values()), return_when=asyncio.FIRST_COMPLETED)

    # How things are, for the status.

    def _note_rival(self, sweeper: str | None) -> None:
        """``sweeper`` swept the queue last. Before this one's first sweep that may have been one that is gone."""
        if self._swept and sweeper not in (None, self.view.uid):
            if self.rival is None:
                logger.warning(
                    "queue %s: another operator drains it, by ClaudeCodeQueue %s", self.view.qualified, sweeper
                )
                self._changed()
            self._rival = (sweeper, time.monotonic())

    def _back(self) -> None:
        if not self.connected:
            self.connected = True
            logger.info("queue %s: Redis answers", self.view.qualified)
            self._changed()
            self._fetch_now.set()
            self._tell_now.set()

    def _note(self, error: Exception) -> None:
        """Remember what went wrong. It is tried again in any case."""
        if isinstance(error, NotHeld):
            # Finished by a call whose reply was lost, removed, or taken over: the next sweep tells which.
            logger.info("queue %s: %s", self.view.qualified, error)
            return
        text = describe(error) if isinstance(error, UNAVAILABLE) else f"{type(error).__name__}: {error}"
        if isinstance(error, UNAVAILABLE):
            if self.connected:
                logger.warning("queue %s: %s", self.view.qualified, text)
                self._sweep_now.set()
            if self.connected or self.last_error is None:
                self._changed()
            self.connected = False
        elif not isinstance(error, ApiError):
            logger.error("queue %s: a defect", self.view.qualified, exc_info=error)
        self.last_error = (text[:2000], time.time())


_Work = tuple[list[Step], QueueJob, JobView | None]


def _plan_absent(
    absent: Sequence[tuple[QueueJob, JobView]], found: Mapping[str, Absent], data_lost: bool
) -> list[_Work]:
    return [
        (plan_absent(job, identity, found.get(identity.id, Absent(None)), data_lost), identity, job)
        for identity, job in absent
    ]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for, which before Python 3.12 forgets that it was cancelled when the event is set at that moment.
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
