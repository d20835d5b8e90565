"""What the operator counts, for Prometheus.

Counted is what has happened once and for all, at the edge where it happens: an attempt's end when the API server has
taken the status that tells of it, which it takes from one process and once. So neither a restart, nor a full listing,
nor a second replica counts anything again. What is a state, such as the jobs by phase, is read when Prometheus asks:
see ``scrape.py``. Labels are namespaces, queues and words of this project's own; never names of jobs or users.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from claudejobs.api.status import JobStatus, Phase

PREFIX = "claudejobs"
RESULTS = ("ok", "stale", "api_error", "defect")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads


class Metrics:
    """All counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._attempts = Counter(
            f"{PREFIX}_attempts_ended",
            "Attempts that ended, by outcome; category says why one did not complete.",
            ["namespace", "outcome", "category"],
            registry=self.registry,
        )
        self._finished = Counter(
            f"{PREFIX}_jobs_finished", "Jobs that ended.", ["namespace", "phase"], registry=self.registry
        )
        self._cost = Counter(
            f"{PREFIX}_cost_usd", "What attempts cost, US dollars.", ["namespace"], registry=self.registry
        )
        self._start = Histogram(
            f"{PREFIX}_job_start_seconds",
            "Time from a job's creation until its first pod was seen running, waits for a slot included.",
            buckets=(0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400),
            registry=self.registry,
        )
        self._reconciles = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "Time to look at one job and act. result is ok, stale (somebody else wrote first), api_error or defect.",
            ["result"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        for result in RESULTS:
            self._reconciles.labels(result)  # from 0 on: of a series that begins at 1, Prometheus sees no increase
        self._writes = Counter(
            f"{PREFIX}_api_writes",
            "Writes sent to the API server, by the answer's HTTP status; 0 is no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )

    def status_written(self, namespace: str, created: datetime, old: JobStatus, new: JobStatus, now: datetime) -> None:
        """The API server has taken ``new`` in the place of ``old`` as the status of a job made at ``created``."""
        ended = {attempt.attempt for attempt in old.attempts if attempt.end_time}
        for attempt in new.attempts:
            if attempt.end_time and attempt.attempt not in ended:
                self._attempts.labels(namespace, attempt.outcome or "", attempt.category or "").inc()
        if new.phase.terminal and not old.phase.terminal:
            self._finished.labels(namespace, new.phase).inc()
        self._cost.labels(namespace).inc(max(0.0, new.cost_usd - old.cost_usd))
        if new.phase is Phase.RUNNING and old.phase is not Phase.RUNNING and new.attempt == 1:
            self._start.observe(max(0.0, (now - created).total_seconds()))

    def api_write(self, verb: str, resource: str, code: int) -> None:
        """A write was sent."""
        self._writes.labels(verb, resource, str(code)).inc()

    @contextmanager
    def reconcile(self) -> Iterator[Reconcile]:
        """Time one look at a job; who looks says on the context's value how it went, unless it went well."""
        look, began = Reconcile(), perf_counter()
        yield look
        self._reconciles.labels(look.result).observe(perf_counter() - began)

    def render(self) -> bytes:
        """The page that Prometheus reads, in its text format."""
        return generate_latest(self.registry)


class Reconcile:
    """How one look at a job went."""

    result = "ok"
