"""One BullMQ queue, by hand: fetch, hold, report, finish. No loop runs here, and nothing is decided.

BullMQ's Python library does what has a call in it; ``scripts`` has what it lacks. Its Worker is used without a
processor, which starts no loop, no lock renewal and no stalled check of its own.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bullmq import Job, Queue, Worker
from redis.exceptions import RedisClusterException, RedisError

from claudejobs.api.queue import DEAD_LETTER_SUFFIX
from claudejobs.api.queue_job import QueueJob

from . import scripts
from .connection import Client
from .plan import Absent, Active, Lock

logger = logging.getLogger(__name__)

TOKEN_PREFIX = "claudejobs:"  # noqa: S105 - what the lock tokens of this project begin with
LOOK_UP_CHUNK = 500
MAX_STALLED_COUNT = 1
"""BullMQ's default: a job that stalls a second time is to fail."""

NO_ASIDE = 6
"""Major version of BullMQ from which on pausing a queue does not move its waiting jobs aside."""

UNAVAILABLE = (RedisError, RedisClusterException, OSError)
"""What is raised when Redis is away, or refuses. (A Cluster's errors are none of the library's other ones.)"""


@dataclass(frozen=True)
class Loaded:
    """A queue job with what its producer gave it.

    Attributes:
        active: what is decided from, as it is when this operator holds the job.
        fields: its hash in Redis, in which data and options can be read as JSON.
    """

    active: Active
    name: str
    data: Any
    opts: Mapping[str, Any]
    fields: Mapping[str, str] = field(repr=False)

    @property
    def identity(self) -> QueueJob:
        """Which run of which job."""
        return self.active.identity


@dataclass(frozen=True)
class Snapshot:
    """What the status of a queue tells."""

    counts: dict[str, int]
    oldest: int | None
    paused: bool
    version: str | None

    @property
    def major(self) -> int | None:
        """Major version of the BullMQ that last wrote the queue's settings."""
        major = (self.version or "").rpartition(":")[2].split(".")[0]
        return int(major) if major.isdecimal() else None

    @property
    def old_pause(self) -> bool:
        """Whether the queue is paused by a BullMQ before 6, which moves waiting jobs aside: what anyone else adds to
        the waiting ones meanwhile is lost when it is resumed."""
        return self.paused and self.major is not None and self.major < NO_ASIDE


class NotHeld(Exception):
    """The queue job is gone, or somebody else has it."""


class BullQueue:
    """Calls on one queue. Any of them may raise one of ``UNAVAILABLE``."""

    def __init__(self, client: Client, prefix: str, name: str, token: str) -> None:
        # The library's types say bytes and pipelines that cannot be chained, whatever decode_responses says.
        self.client: Any = client
        self.name = name
        self.prefix = prefix
        self.token = TOKEN_PREFIX + token
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._worker = Worker(name, None, {"connection": client, "prefix": prefix, "skipVersionCheck": True})
        self.qualified = f"{prefix}:{name}"
        register = client.register_script
        self._sweep = register(scripts.SWEEP)
        self._look_up = register(scripts.LOOK_UP)
        self._take_lock = register(scripts.TAKE_LOCK)
        self._keep_template = register(scripts.KEEP_TEMPLATE)
        self._note_uid = register(scripts.NOTE_UID)
        self._ask_to_cancel = register(scripts.ASK_TO_CANCEL)
        self._add_logs = register(scripts.ADD_LOGS)
        self._worker.backend.scripts.commands["moveToFinished"] = register(scripts.FINISH)

    def key(self, name: str) -> str:
        """Key of a part of the queue, or of a job."""
        return f"{self.qualified}:{name}"

    @property
    def events_key(self) -> str:
        """The queue's event stream."""
        return self.key("events")

    async def fetch(self, lock_ms: int) -> Loaded | None:
        """Take the next job, if one waits and the queue is not paused or limited."""
        raw = await self._worker.backend.moveToActive(self.token, {"lockDuration": lock_ms})
        fields, job_id = raw[:2] if raw else (None, None)
        return self._loaded(job_id, fields) if fields and job_id else None

    async def load(self, identity: QueueJob) -> Loaded:
        """Read a job.

        Raises:
            NotHeld: it is not there, or it is not this run of it.
        """
        fields = await self.client.hgetall(self.key(identity.id))
        loaded = self._loaded(identity.id, fields) if fields else None
        if loaded is None or loaded.identity != identity:
            raise NotHeld(f"queue job {identity.id} is gone, or was finished before")
        return loaded

    def _loaded(self, job_id: str, fields: Mapping[str, str]) -> Loaded:
        identity = self._identity(job_id, *(fields.get(name, "") for name in _IDENTITY_FIELDS))
        readable = _readable(fields)
        active = Active(
            identity,
            Lock.OURS,
            uid=_uid_of(identity, fields.get(scripts.FIELD_UID, "")),
            cancel=_is_cancelled(identity, fields.get(scripts.FIELD_CANCEL, "")),
            deferred_failure=fields.get("defa", ""),
            # Whether it has been made already is for BullMQ's script to say, which makes none twice.
            successor_due=bool(fields.get("rjk")),
        )
        name, data, opts = fields.get("name", ""), json.loads(readable["data"]), json.loads(readable["opts"])
        return Loaded(active, name, data, opts, readable)

    def _identity(self, job_id: str, timestamp: str, finishes: str, deliveries: str) -> QueueJob:
        return QueueJob(self.qualified, job_id, _number(timestamp), _number(finishes), _number(deliveries))

    async def sweep(self, lock_ms: int) -> list[Active]:
        """Renew the locks of all jobs that are held, and tell of all active jobs."""
        keys = [self.key("active"), self.key("stalled"), self.key("repeat")]
        rows = await self._sweep(keys=keys, args=[self.key(""), self.token, TOKEN_PREFIX, lock_ms])
        found = []
        for job_id, lock, timestamp, finishes, deliveries, uid, cancel, failure, due in rows:
            if not timestamp:
                continue  # an entry without a job, as a removal leaves it behind
            identity = self._identity(job_id, timestamp, finishes, deliveries)
            found.append(
                Active(
                    identity, Lock(lock), _uid_of(identity, uid), _is_cancelled(identity, cancel), failure, bool(due)
                )
            )
        return found

    async def schedule_next(self, loaded: Loaded) -> None:
        """Have the job scheduler that made a job make the next one, as BullMQ's workers do when they begin a job.

        Once however often it is called; none is made when the scheduler is gone or at its end.
        """
        job = Job.fromJSON(self._worker, dict(loaded.fields), loaded.identity.id)
        scheduler: str = loaded.fields["rjk"]
        await self._keep_template(keys=[self.key(f"repeat:{scheduler}")], args=[loaded.fields["data"]])
        given = (job.opts.get("repeat"), job.name, job.data, job.opts)
        try:
            await self._worker.jobScheduler.upsertJobScheduler(scheduler, *given, override=False, producer_id=job.id)
        except UNAVAILABLE:
            raise
        except Exception as error:  # whatever the library makes of a pattern or a time zone that it cannot read
            logger.warning("job scheduler %s of queue %s makes no more jobs: %s", scheduler, self.qualified, error)

    async def look_up(self, ids: Sequence[str]) -> dict[str, Absent]:
        """What there is of jobs by id."""
        found: dict[str, Absent] = {}
        for start in range(0, len(ids), LOOK_UP_CHUNK):
            chunk = ids[start : start + LOOK_UP_CHUNK]
            rows = await self._look_up(keys=[self.key("meta")], args=[self.key(""), *chunk])
            for job_id, (timestamp, finishes, deliveries, finished) in zip(chunk, rows, strict=True):
                identity = self._identity(job_id, timestamp, finishes, deliveries) if timestamp else None
                found[job_id] = Absent(identity, bool(finished))
        return found

    async def take_lock(self, job_id: str, lock_ms: int, former: bool = False) -> bool:
        """Take the lock of an active job that has none, or (``former``) that another ClaudeCodeQueue had."""
        keys = [self.key("active"), self.key("stalled"), self.key(f"{job_id}:lock")]
        return bool(
            await self._take_lock(keys=keys, args=[job_id, self.token, lock_ms, TOKEN_PREFIX if former else ""])
        )

    async def return_stalled(self, interval_ms: int) -> None:
        """BullMQ's stalled check: active jobs that nobody locks any more wait again. Any worker's duty."""
        await self._worker.backend.moveStalledJobsToWait(MAX_STALLED_COUNT, interval_ms)

    async def note_uid(self, identity: QueueJob, uid: str) -> None:
        """Note which resource was made for this run of the job; nothing happens when the run is over."""
        run = (identity.timestamp, identity.finishes, identity.deliveries)
        await self._note_uid(keys=[self.key(identity.id)], args=[f"{identity.resource_name}/{uid}", *run])

    async def ask_to_cancel(self, job_id: str) -> bool:
        """Note that a producer wants the job cancelled; whether there is such a job."""
        return bool(await self._ask_to_cancel(keys=[self.key(job_id)]))

    async def update_progress(self, job_id: str, progress: Any) -> None:
        """Set the progress, and tell listeners."""
        try:
            await self._worker.backend.updateProgress(job_id, progress)
        except TypeError:
            return  # there is no such job any more

    async def add_logs(self, job_id: str, lines: Sequence[str], keep: int) -> None:
        """Append lines to the job's log; nothing happens when there is no such job."""
        await self._add_logs(keys=[self.key(job_id), self.key(f"{job_id}:logs")], args=[keep or "", *lines])

    async def complete(self, loaded: Loaded, value: Any) -> None:
        """Finish a job that is held with its return value.

        Raises:
            NotHeld: it is not, or it is another run of it by now.
        """
        await self._finish(loaded, "completed", "returnvalue", value, {})

    async def fail(self, loaded: Loaded, reason: str, trace: Sequence[str] = ()) -> None:
        """Finish a job that is held with a reason; BullMQ does not try it again.

        Raises:
            NotHeld: as above.
        """
        fields = {"failedReason": reason, "stacktrace": json.dumps(list(trace))}
        await self._finish(loaded, "failed", "failedReason", reason, fields)

    async def _finish(self, loaded: Loaded, target: str, name: str, value: Any, fields: dict[str, str]) -> None:
        identity = loaded.identity
        job = Job.fromJSON(self._worker, dict(loaded.fields), identity.id)
        # The cluster has made all attempts already; listeners are told that they are exhausted.
        job.attempts = job.attemptsMade + 1
        remove = job.opts.get("removeOnComplete" if target == "completed" else "removeOnFail", False)
        # Written in the same script: a job that is retried by hand later is another run, with another resource.
        marks = {
            scripts.FIELD_DELIVERIES: str(identity.deliveries + 1),
            scripts.FIELD_UID: "",
            scripts.FIELD_CANCEL: "",
        }
        keys, args = self._worker.backend.scripts.moveToFinishedArgs(
            job, value, name, remove, target, self.token, False, fields | marks
        )
        run = [loaded.fields.get(name, "") for name in _IDENTITY_FIELDS]
        try:
            await self._worker.backend.scripts.moveToFinished(identity.id, keys, [*args, *run])
        except TypeError as error:
            raise NotHeld(str(error)) from error

    async def snapshot(self) -> Snapshot:
        """Counts and settings of the queue."""
        pipe = self.client.pipeline(transaction=False)
        pipe.llen(self.key("wait")).llen(self.key("paused")).llen(self.key("active"))
        for name in ("prioritized", "delayed", "completed", "failed"):
            pipe.zcard(self.key(name))
        pipe.lindex(self.key("wait"), -1).zrange(self.key("prioritized"), 0, 0)
        pipe.hmget(self.key("meta"), "paused", "version")
        letters = f"{self.prefix}:{self.name}{DEAD_LETTER_SUFFIX}"
        pipe.llen(f"{letters}:wait")
        answers = await pipe.execute()
        wait, aside, active, prioritized, delayed, completed, failed, last, first, meta, dead = answers
        oldest = [job_id for job_id in (last, *first) if job_id]
        ages = [_number(await self.client.hget(self.key(job_id), "timestamp") or "") for job_id in oldest]
        counts = {
            "waiting": wait + aside,
            "prioritized": prioritized,
            "delayed": delayed,
            "active": active,
            "completed": completed,
            "failed": failed,
            "dead_letter": dead,
        }
        return Snapshot(counts, min((age for age in ages if age), default=None), bool(meta[0]), meta[1])

    async def recall(self) -> dict[str, str]:
        """What ``remember`` kept with the queue; empty when Redis lost it."""
        kept: dict[str, str] = await self.client.hgetall(self.key("claudejobs:state"))
        return kept

    async def remember(self, **values: str) -> None:
        """Keep values with the queue, outlasting this process; they are lost exactly when the queue's data is."""
        await self.client.hset(self.key("claudejobs:state"), mapping=values)

    def queue(self, name: str) -> Queue:
        """Another queue under the same prefix."""
        return Queue(name, {"connection": self.client, "prefix": self.prefix, "skipVersionCheck": True})


async def run_id(client: Any) -> str:
    """Names the Redis processes that answer; another one may have lost what the former was told last."""
    info: dict[str, Any] = await client.info("server")
    if "run_id" in info:
        return str(info["run_id"])
    return ",".join(sorted(str(node["run_id"]) for node in info.values()))


_IDENTITY_FIELDS = ("timestamp", "atm", scripts.FIELD_DELIVERIES)


def _readable(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields with data and options that can be read: a job with garbage is to fail, not to stop the queue."""
    return {**fields, "data": _json_or(fields.get("data"), "null"), "opts": _json_or(fields.get("opts"), "{}")}


def _json_or(text: str | None, otherwise: str) -> str:
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return otherwise
    return text if text and (otherwise != "{}" or isinstance(value, dict)) else otherwise


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _is_cancelled(identity: QueueJob, noted: str) -> bool:
    return noted == f"{identity.finishes}/{identity.deliveries}"


def _uid_of(identity: QueueJob, noted: str) -> str | None:
    """The UID that was noted for this run; what was noted for an earlier one does not count."""
    name, _, uid = noted.partition("/")
    return uid if uid and name == identity.resource_name else None
