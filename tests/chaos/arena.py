"""Plays a scenario with one fault, and says how it came out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from claudejobs.kube.client import jobs_path, pods_path, pools_path
from tests.support.kube import unique

from .api import Api, View
from .faults import Fault, Kind
from .processes import ForkServer, Operator
from .proxy import FaultProxy
from .scenarios import SCENARIOS, SETTINGS, Stage
from .seeded import OUTDATED

_SAID_OF_DEFECTS = ("a defect", "Traceback", OUTDATED)


@dataclass(frozen=True)
class Outcome:
    """How a run came out, without times and identities.

    Attributes:
        status: the job's status; ``None`` when the job is gone.
        pods: how many pods there ever were, by attempt.
        rows: the ProcessState rows.
        live: pods that are not at their end.
    """

    status: dict[str, Any] | None
    pods: dict[str, int]
    rows: list[dict[str, Any]]
    live: list[str]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        writes: the operator's writes.
        events: how many watch events came, by stream.
        trouble: what did not go as it should; empty when all is well.
        hit: whether the fault struck.
    """

    outcome: Outcome
    writes: list[str]
    events: dict[str, int]
    trouble: str
    hit: bool


@dataclass(frozen=True)
class Running:
    """An operator at work: its database, and its log."""

    database: Path
    log: Path

    def defects(self) -> list[str]:
        """Lines of the log that tell of a defect."""
        text = self.log.read_text() if self.log.exists() else ""
        return [line[:1500] for line in text.splitlines() if any(word in line for word in _SAID_OF_DEFECTS)][:3]


class Arena:
    """A namespace, a proxy and, one after the other, operators."""

    def __init__(self, api: Api, server: ForkServer, node: str, folder: Path, empty_database: Path) -> None:
        self.namespace = unique("chaos")
        self.api = self._api = api
        self._server, self._node, self._folder = server, node, folder
        self._empty_database = empty_database
        self._proxy = FaultProxy(api, self.namespace, self.crash)
        self._count = itertools.count(1)
        self._operator: Operator | None = None

    async def open(self) -> None:
        """Make the namespace and start the proxy."""
        self._folder.mkdir()
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        await self._api.request("POST", "/api/v1/namespaces", body)
        self.view = View(self._api, self.namespace)
        await self._proxy.start()
        self._proxy.write_kubeconfig(self._folder / "kubeconfig")
        account = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default"
        async with asyncio.timeout(30):
            while await self._api.get(account) is None:  # noqa: ASYNC110 - made by the cluster, soon
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Remove all of it."""
        await self._proxy.stop()
        await self.view.stop()
        await self._api.request("DELETE", f"/api/v1/namespaces/{self.namespace}")

    async def run(
        self,
        scenario: str,
        fault: Fault | None = None,
        expected: Outcome | None = None,
        bug: str | None = None,
        timeout: float = 40.0,
    ) -> Run:
        """Play a scenario to its end, or until the outcome is the expected one."""
        name = f"{scenario}-{next(self._count)}"
        trouble: list[str] = []
        outcome = None
        async with self.operator(name, fault, bug, **SETTINGS.get(scenario, {})) as running:
            try:
                async with asyncio.timeout(timeout):
                    await self._proxy.watched()
                    rows = partial(read_rows, running.database)
                    stage = Stage(self._api, self.view, self.namespace, self._node, name, rows)
                    await SCENARIOS[scenario](stage)
                    outcome = await self._settle(name, running.database, expected)
            except TimeoutError as error:
                trouble.append(f"not within {timeout} s; {_notes(error)}")
                await self._dump()
            outcome = outcome or self._outcome(name, running.database)
        if expected is not None and outcome != expected:
            trouble.append(_difference(expected, outcome))
        if fault is None or fault.kind is not Kind.LIST_410:
            trouble += running.defects()  # but Kopf does not survive an expired list: the operator then starts again
        if trouble:
            trouble.append(f"log: {running.log}")
        return Run(outcome, self._proxy.writes, dict(self._proxy.events), "\n  ".join(trouble), self._proxy.hit)

    @asynccontextmanager
    async def operator(
        self, name: str, fault: Fault | None = None, bug: str | None = None, **settings: object
    ) -> AsyncIterator[Running]:
        """Run an operator; afterwards it is killed, and the namespace empty."""
        running = Running(self._folder / f"{name}.db", self._folder / f"{name}.log")
        shutil.copyfile(self._empty_database, running.database)
        environment = {
            "DATABASE_URL": f"sqlite:///{running.database}",
            "WATCH_NAMESPACES": self.namespace,
            "HEALTH_PORT": "0",
            "RESYNC_SECONDS": "5",
        } | {key.upper(): str(value) for key, value in settings.items()}
        self._proxy.begin(fault)
        keeper = asyncio.create_task(self._keep_running(environment, running.log, bug))
        try:
            yield running
        finally:
            await self._end(keeper)
            await self._clear()

    async def _settle(self, name: str, database: Path, expected: Outcome | None) -> Outcome:
        """Wait until the outcome is as expected, or, when that is not known, until it is an end."""
        while True:
            outcome = self._outcome(name, database)
            complete = len(outcome.rows) == sum(outcome.pods.values())
            ended = complete and not outcome.live and all(row["end_time"] for row in outcome.rows)
            if ended if expected is None else outcome == expected:
                return outcome
            if expected is not None and ended and outcome.pods != expected.pods:
                return outcome  # a pod too many does not go away again
            await asyncio.sleep(0.05)

    def _outcome(self, name: str, database: Path) -> Outcome:
        job = self.view.jobs.get(name)
        live = [
            pod["metadata"]["name"]
            for pod in self.view.pods_of(name)
            if pod["status"].get("phase") not in ("Succeeded", "Failed")
        ]
        pods = {attempt: len(uids) for (job, attempt), uids in self.view.attempts.items() if job == name}
        status = _normal(job.get("status", {}), name) if job else None
        return Outcome(status, pods, _normal(_relevant(read_rows(database)), name), live)

    async def _keep_running(self, environment: dict[str, str], log: Path, bug: str | None) -> None:
        """Start the operator, and start it again whenever it ends."""
        while True:
            self._operator = await self._server.fork(environment, self._folder, log, bug)
            await self._operator.ended.wait()
            self._proxy.disconnect()

    @property
    def writes(self) -> list[str]:
        """The operator's writes since it was started first."""
        return self._proxy.writes

    @property
    def hit(self) -> bool:
        """Whether the fault has struck."""
        return self._proxy.hit

    async def crash(self) -> None:
        """Kill the operator."""
        assert self._operator is not None
        await self._operator.kill()

    async def _dump(self) -> None:
        """Have the operator say in its log where it is, before it is killed."""
        if self._operator is not None:
            self._operator.dump()
            await asyncio.sleep(0.2)

    async def _end(self, keeper: asyncio.Task[None]) -> None:
        failed = keeper.done()
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        assert not failed
        if self._operator:
            await self._operator.kill()
        self._proxy.disconnect()

    async def _clear(self) -> None:
        """Remove the job, its pods and its pool."""
        await self._api.request("DELETE", pools_path(self.namespace))
        await self._api.request("DELETE", jobs_path(self.namespace), {"propagationPolicy": "Background"})
        await self._api.request("DELETE", pods_path(self.namespace), {"gracePeriodSeconds": 0})
        async with asyncio.timeout(30):
            await self.view.until(lambda: not self.view.jobs and not self.view.pods, "the namespace is empty")
        self.view.attempts.clear()


def _notes(error: BaseException) -> str:
    cause = error.__cause__
    return "; ".join(getattr(cause, "__notes__", [])) or "the outcome is not as expected"


_TIME = re.compile(r'"\d{4}-\d\d-\d\d[T ][^"]*"')
_SESSION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def _normal(value: Any, name: str) -> Any:
    text = re.sub(f"{name}-warm-[a-z0-9]+", f"{name}-1", json.dumps(value, sort_keys=True, default=str))
    text = text.replace(name, "JOB")
    return json.loads(_SESSION.sub("ID", _TIME.sub('"TIME"', text)))


_IRRELEVANT = ("created_at", "updated_at", "logs", "job_namespace")


def read_rows(database: Path) -> list[dict[str, Any]]:
    """The ProcessState rows, by attempt."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM process_states ORDER BY attempt, status").fetchall()
    return [dict(row) for row in rows]


def _relevant(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ended = [row | {key: bool(row[key]) for key in ("start_time", "end_time")} for row in rows]
    return [{key: value for key, value in row.items() if key not in _IRRELEVANT} for row in ended]


def _difference(expected: Outcome, outcome: Outcome) -> str:
    parts = []
    for part in ("status", "pods", "rows", "live"):
        want, have = getattr(expected, part), getattr(outcome, part)
        if want != have:
            parts.append(f"{part}: {_changed(want, have)}")
    return "\n  ".join(parts)


def _changed(want: Any, have: Any) -> str:
    if isinstance(want, dict) and isinstance(have, dict):
        keys = sorted(key for key in want.keys() | have.keys() if want.get(key) != have.get(key))
        return ", ".join(f"{key} is {have.get(key)!r}, not {want.get(key)!r}" for key in keys)
    return f"{have!r}, not {want!r}"
