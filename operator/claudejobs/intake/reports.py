"""What goes to producers while their jobs run: progress and log lines, kept while Redis is away."""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from claudejobs.api.queue_job import QueueJob

from .bull import BullQueue

MAX_LINES = 1000
"""Log lines of one job that are kept while Redis is away; the oldest go first. The database has them all."""


@dataclass
class _Report:
    progress: Any = None
    told: Any = None
    keep: int = 0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))


class Reports:
    """Buffers, and sends the newest progress and all lines of each job at every ``flush``."""

    def __init__(self, bull: BullQueue) -> None:
        self._bull = bull
        self._reports: dict[QueueJob, _Report] = {}
        self._dirty: set[QueueJob] = set()

    def progress(self, job: QueueJob, value: Any) -> None:
        """The newest progress of a job."""
        report = self._reports.setdefault(job, _Report())
        report.progress = value
        if value != report.told:
            self._dirty.add(job)

    def say(self, job: QueueJob, *lines: str) -> None:
        """Lines for a job's log."""
        self._reports.setdefault(job, _Report()).lines.extend(lines)
        self._dirty.add(job)

    def keep_logs(self, job: QueueJob, keep: int) -> None:
        """How many lines the job's producer wants to be kept; 0 means all."""
        self._reports.setdefault(job, _Report()).keep = keep

    def forget(self, job: QueueJob) -> None:
        """The job is finished."""
        self._reports.pop(job, None)
        self._dirty.discard(job)

    def retain(self, jobs: AbstractSet[QueueJob]) -> None:
        """Forget all other jobs: their ends came without a resource's, or not through this process."""
        for job in self._reports.keys() - jobs:
            self.forget(job)

    async def flush(self) -> None:
        """Send what is new. What raises is kept for the next time."""
        for job in list(self._dirty):
            await self.flush_job(job)

    async def flush_job(self, job: QueueJob) -> None:
        """Send what is new of one job."""
        report = self._reports.get(job)
        if report is None:
            return
        lines = list(report.lines)
        if lines:
            await self._bull.add_logs(job.id, lines, report.keep)
            # Not cleared: more may have come meanwhile, and a full buffer has dropped its oldest by itself.
            for _ in range(min(len(lines), len(report.lines))):
                report.lines.popleft()
        progress = report.progress
        if progress != report.told:
            await self._bull.update_progress(job.id, progress)
            report.told = progress
        if not report.lines and report.progress == report.told:
            self._dirty.discard(job)
