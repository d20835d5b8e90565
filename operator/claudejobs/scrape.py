"""Gauges that are read when Prometheus asks: jobs by phase, queues, the store, the election.

Only the replica that acts knows of jobs and queues; one that stands by exports none of either, so that sums over
replicas are right.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from claudejobs import __version__
from claudejobs.api.queue import QueueCounts
from claudejobs.api.status import Phase
from claudejobs.intake.manager import Intake
from claudejobs.kube.controller import Controller
from claudejobs.kube.lease import Election
from claudejobs.metrics import PREFIX
from claudejobs.settings import Settings
from claudejobs.store import Store

WAITING = (Phase.PENDING, Phase.QUEUED)


class Scraped(Collector):
    """Reads the parts' state; belongs to their event loop."""

    def __init__(
        self, settings: Settings, controller: Controller, store: Store, intake: Intake, election: Election | None
    ) -> None:
        self._settings = settings
        self._controller = controller
        self._store = store
        self._intake = intake
        self._election = election

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise read everything once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All gauges as of now."""
        yield _gauge("build_info", "Always 1; the label is the version.", {"version": __version__}, 1)
        yield _gauge("leader", "Whether this replica acts.", {}, self._leads())
        yield _gauge("max_concurrent_jobs", "The limit MAX_CONCURRENT_JOBS.", {}, self._settings.max_concurrent_jobs)
        yield from self._jobs()
        yield from self._work()
        yield from self._queues()
        yield from self._database()

    def _leads(self) -> bool:
        return self._election is None or (self._election.acquired.is_set() and not self._election.lost.is_set())

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs that there are.", labels=["namespace", "phase"])
        oldest = GaugeMetricFamily(
            f"{PREFIX}_oldest_waiting_job_seconds",
            "Age of the oldest job that has had no pod yet, seconds; 0 when there is none.",
            labels=["namespace"],
        )
        now = datetime.now(UTC)
        counts: Counter[tuple[str, Phase]] = Counter()
        waits: dict[str, float] = {}
        for job in self._controller.jobs():
            counts[job.namespace, job.status.phase] += 1
            waiting = job.status.phase in WAITING and job.status.attempt == 0
            age = (now - job.created).total_seconds() if waiting else 0.0
            waits[job.namespace] = max(waits.get(job.namespace, 0.0), age)
        for namespace, age in waits.items():
            oldest.add_metric([namespace], age)
            for phase in Phase:
                jobs.add_metric([namespace, phase], counts[namespace, phase])
        yield jobs
        yield oldest

    def _work(self) -> Iterator[Metric]:
        keys = GaugeMetricFamily(
            f"{PREFIX}_workqueue_jobs",
            "Jobs to look at: ready, active (being looked at), or backing_off after an error.",
            labels=["state"],
        )
        for state, count in self._controller.workload().items():
            keys.add_metric([state], count)
        yield keys
        if self._controller.last_resync is not None:
            age = time.monotonic() - self._controller.last_resync
            yield _gauge("resync_age_seconds", "Time since the last full listing.", {}, age)

    def _queues(self) -> Iterator[Metric]:
        labels = ["namespace", "queue"]
        up = GaugeMetricFamily(f"{PREFIX}_queue_up", "Whether a ClaudeCodeQueue is drained now.", labels=labels)
        depth = GaugeMetricFamily(
            f"{PREFIX}_queue_jobs",
            "Jobs of a queue in Redis, by BullMQ's state; nothing while Redis does not answer.",
            labels=[*labels, "state"],
        )
        held = GaugeMetricFamily(f"{PREFIX}_queue_held_jobs", "Queue jobs fetched and not finished.", labels=labels)
        lag = GaugeMetricFamily(
            f"{PREFIX}_queue_lag_seconds", "Age of the queue job that waits longest in Redis, seconds.", labels=labels
        )
        for key, (drained, status) in self._intake.readings().items():
            reads = drained and status.connected
            up.add_metric(key, reads)
            held.add_metric(key, status.held)
            if reads:
                lag.add_metric(key, status.lag_seconds)
                for state in QueueCounts.model_fields:
                    depth.add_metric([*key, state], getattr(status.counts, state))
        yield from (up, depth, held, lag)

    def _database(self) -> Iterator[Metric]:
        health = self._store.health
        yield _gauge("store_up", "Whether the database takes rows.", {}, health.state == "ok")
        pending = GaugeMetricFamily(
            f"{PREFIX}_store_pending", "What waits in memory for the database: rows, log_lines.", labels=["kind"]
        )
        pending.add_metric(["rows"], health.pending_rows)
        pending.add_metric(["log_lines"], health.pending_log_lines)
        yield pending
        dropped = CounterMetricFamily(
            f"{PREFIX}_store_dropped",
            "What was dropped because too much waited, or because the database can never take it.",
            labels=["kind"],
        )
        dropped.add_metric(["rows"], health.dropped_rows)
        dropped.add_metric(["log_lines"], health.dropped_log_lines)
        yield dropped
        yield CounterMetricFamily(f"{PREFIX}_store_rows", "Rows written.", value=health.written_rows)
        yield CounterMetricFamily(f"{PREFIX}_store_statements", "SQL statements sent.", value=health.statements)


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), float(value))
    return family
