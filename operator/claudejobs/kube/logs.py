"""Follows the logs of the jobs' pods: events become a live report, every line goes to the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from claudejobs.api.events import parse_event
from claudejobs.api.process_state import LogLine, process_id
from claudejobs.reconcile.views import CONTAINER, Key, LiveReport, PodView
from claudejobs.store import LastLog, Store, StoreUnavailableError

from .client import ApiError, KubeClient
from .lines import LineSplitter, Reader

logger = logging.getLogger(__name__)

MAX_STORED_LINE = 16384
"""Characters of a line that are stored."""


class LogFollowers:
    """One follower per pod whose container has started.

    A new operator reads each log from its beginning, because only the events tell how far the agent is; the lines
    that the store has already are recognised by their time and not numbered again, also when the log was rotated
    meanwhile and begins in the middle.
    """

    def __init__(
        self, client: KubeClient, store: Store, changed: Callable[[Key], None], said: Callable[[Key, str], None]
    ) -> None:
        self._client = client
        self._store = store
        self._changed = changed
        self._said = said
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reports: dict[str, LiveReport] = {}
        self._ended: set[str] = set()

    def report(self, process: str) -> LiveReport | None:
        """What the events of an attempt (by process id) told so far; it outlives the pod."""
        return self._reports.get(process)

    def follow(self, pod: PodView) -> None:
        """Follow the pod's log, unless that is being done or done already."""
        process = process_id(pod.job_uid, pod.attempt)
        if pod.terminated:
            self._ended.add(process)
        if process not in self._tasks and pod.started is not None:
            self._reports.setdefault(process, LiveReport())
            self._tasks[process] = asyncio.create_task(self._run(pod, process), name=f"log of {pod.name}")

    def forget(self, process: str) -> None:
        """Stop following, and drop the report."""
        task = self._tasks.pop(process, None)
        if task:
            task.cancel()
        self._reports.pop(process, None)
        self._ended.discard(process)

    def forget_job(self, job_uid: str) -> None:
        """Do that for all attempts of a job."""
        for process in [p for p in self._tasks if p.startswith(job_uid)]:
            self.forget(process)

    async def stop(self) -> None:
        """Stop all followers."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, pod: PodView, process: str) -> None:
        """Read until the container has ended and its log with it. A stream also ends when it is cut, when the log is
        rotated or the kubelet restarts; then it is taken up after the last line."""
        reader = Reader(process, await self._stored(process))
        delay = 0.2
        while True:
            ended = process in self._ended
            try:
                await self._read(pod, reader, to_the_end=ended)
                delay = 0.2
            except ApiError as error:
                if error.status in (400, 404) and (ended or error.status == 404):
                    break  # the pod or its container is gone
                logger.debug("log of %s: %s", pod.name, error)
                delay = min(delay * 2, 10.0)
            if ended:
                break
            await asyncio.sleep(delay)
        self._reports[process] = replace(self._reports.get(process, LiveReport()), drained=True)
        self._changed(pod.job)

    async def _stored(self, process: str) -> LastLog | None:
        try:
            return await self._store.last_log(process)
        except StoreUnavailableError:
            return None

    async def _read(self, pod: PodView, reader: Reader, to_the_end: bool) -> None:
        async with self._client.follow_log(pod.namespace, pod.name, CONTAINER, reader.since) as stream:
            splitter = LineSplitter()
            reader.resume()
            async for chunk in stream.iter_any():
                self._take(pod, reader, splitter.feed(chunk))
            if to_the_end:
                # Of a stream that was cut, half a line is worth nothing: it comes whole with the next stream.
                self._take(pod, reader, splitter.flush())

    def _take(self, pod: PodView, reader: Reader, raw_lines: list[bytes]) -> None:
        report = self._reports.get(reader.process_id, LiveReport())
        lines = []
        for raw in raw_lines:
            seen = reader.take(raw)
            if seen is None:
                continue
            event = parse_event(seen.text)
            if event and (missing := reader.missing_before(event.seq)):
                logger.warning("log of %s: the kubelet lost %d lines when it rotated the log", pod.name, missing)
            tail = report.tail
            report = report.with_event(event) if event else report.with_text(seen.text)
            if seen.number is not None:
                if report.tail is not tail:
                    self._said(pod.job, report.tail[-1])
                lines.append(
                    LogLine(
                        process_id=reader.process_id,
                        seq=seen.number,
                        time=seen.time,
                        stream="event" if event else "stdout",
                        line=seen.text[:MAX_STORED_LINE],
                    )
                )
        if lines:
            self._store.append_logs(lines)
        if report != self._reports.get(reader.process_id):
            self._reports[reader.process_id] = report
            self._changed(pod.job)
