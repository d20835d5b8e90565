"""A small world around the operator: an API server, a kubelet, logs, a clock, and users. Nothing in it sleeps.

The operator's own parts are the real ones: the cache, ``decide`` and the code that carries decisions out. Only what
they talk to is made here, so that a call can be cut before or after its effect, and the world can move between two
calls. ``ApiServer`` checks, with every write, what must hold at all times; see ``_check_creation`` and
``_check_status``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import inf
from typing import Any, Literal, TypeVar, cast

from claudejobs.api.base import KIND
from claudejobs.api.events import RunnerResult, parse_result
from claudejobs.api.pool import PoolSpec, PoolStatus
from claudejobs.api.process_state import ProcessState, process_id
from claudejobs.api.status import AttemptStatus, JobStatus, Phase
from claudejobs.kube.apply import Applier, Stale
from claudejobs.kube.cache import Cache
from claudejobs.kube.client import ApiError, KubeClient
from claudejobs.kube.pools import Pools
from claudejobs.kube.workqueue import WorkQueue
from claudejobs.reconcile.decide import Decision, Seen, decide
from claudejobs.reconcile.pool import PoolView, build_warm_pod
from claudejobs.reconcile.report import RESERVED
from claudejobs.reconcile.rows import row_of, rows_of
from claudejobs.reconcile.views import ATTEMPT_LABEL, CONTAINER, JobView, Key, LiveReport
from claudejobs.settings import Settings

from .objects import NOW, Json, job_object, stamp

T = TypeVar("T")
Decide = Callable[[Seen, Settings], Decision]
KEY = ("team", "job")
GATE = "kueue.x-k8s.io/admission"


class Crash(BaseException):
    """The operator's process dies here."""


@dataclass(frozen=True)
class Cut:
    """What befalls the ``call``-th API call of one reconciliation.

    Attributes:
        how: ``crash-`` ends the operator, ``error-`` loses the request or its answer; ``none`` lets it pass. ``late``
            is an error, too, and the hand-over of a warm pod comes when ``ApiServer.late`` is called.
        meanwhile: what happens just before the call.
    """

    call: int
    how: Literal["none", "crash-before", "crash-after", "error-before", "error-after", "late"] = "none"
    meanwhile: Callable[[], None] = lambda: None


@dataclass
class Process:
    """The truth about one pod's container, which may differ from what the API server has.

    Attributes:
        excused: a user removed the pod by force; whatever still runs is theirs to answer for.
        log: what a reader of the log knows after each line.
    """

    attempt: int
    pod_name: str
    state: Literal["idle", "waiting", "running", "ended"] = "waiting"
    hung: bool = False
    excused: bool = False
    log: list[LiveReport] = field(default_factory=lambda: [LiveReport()])

    @property
    def live(self) -> bool:
        """Whether it is a job's, and may run: in a pod that waits for one nothing does."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class End:
    """How a container ends: its exit code, and what it leaves in termination message and log."""

    code: int
    result: Json | None = None
    reason: str = "Error"
    logged: bool = True

    @property
    def message(self) -> str:
        return json.dumps({"version": 1} | self.result) if self.result else ""


COMPLETED = End(0, {"outcome": "completed", "text": "done", "cost_usd": 0.5}, "Completed")
STOPPED = End(35, {"outcome": "cancelled", "category": "cancelled", "cost_usd": 0.1})
KILLED = End(137)


class ApiServer:
    """Holds the job, its pods and the jobs beside it, tells of every change, and refuses stale writes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._revision = 1000
        self.job: Json | None = None
        self.neighbours: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.job_events: list[tuple[str, Json]] = []
        self.pod_events: list[tuple[str, Json]] = []
        self.status_writes = 0
        self.created: list[int] = []
        self.handed_over = 0
        self.calls = 0
        self.cut: Cut | None = None
        self.late: list[Callable[[], Json]] = []

    # What the operator calls, with the signatures of KubeClient.

    async def get(self, path: str, params: dict[str, str] | None = None) -> Json | None:
        return self._call(lambda: copy.deepcopy(self._find(path)))

    async def request(self, method: str, path: str, body: Json | None = None, content_type: str = "") -> Json:
        assert body is not None
        act = {"POST": self._create_pod, "DELETE": self._delete, "PATCH": self._hand_over}[method]
        if method == "PATCH" and self.cut and self.cut.how == "late":
            self.late.append(lambda: self._hand_over(path, body, late=True))
        return self._call(lambda: copy.deepcopy(act(path, copy.deepcopy(body))))

    async def patch_status(self, namespace: str, name: str, resource_version: str, status: Json) -> Json:
        return self._call(lambda: copy.deepcopy(self._patch(resource_version, copy.deepcopy(status))))

    def _call(self, effect: Callable[[], T]) -> T:
        self.calls += 1
        cut = self.cut if self.cut and self.cut.call == self.calls else Cut(0)
        cut.meanwhile()
        if cut.how == "crash-before":
            raise Crash
        if cut.how in ("error-before", "late"):
            raise ApiError(0, "ServerDisconnected", "the request was lost")
        answer = effect()
        if cut.how == "crash-after":
            raise Crash
        if cut.how == "error-after":
            raise ApiError(0, "TimeoutError", "the answer was lost")
        return answer

    def _find(self, path: str) -> Json | None:
        return self.pods.get(path.rsplit("/", 1)[1]) if "/pods" in path else self.job

    def _create_pod(self, _: str, body: Json) -> Json:
        name, number = body["metadata"]["name"], int(body["metadata"]["labels"][ATTEMPT_LABEL])
        if name in self.pods:
            raise ApiError(409, "AlreadyExists", f'pods "{name}" already exists')
        self._check_creation(number)
        uid = f"pod-{len(self._world.processes)}"
        body["metadata"] |= {"uid": uid, "creationTimestamp": stamp(self._world.now)}
        body["status"] = {"phase": "Pending"}
        if self._world.gating:
            body["spec"]["schedulingGates"] = [{"name": GATE}]
            body["metadata"]["finalizers"] = ["kueue.x-k8s.io/managed"]
        self.pods[name] = body
        self.created.append(number)
        self._world.processes[uid] = Process(number, name)
        return self.changed(body, "ADDED")

    def _hand_over(self, path: str, body: Json, late: bool = False) -> Json:
        pod, meta = self._find(path), body["metadata"]
        if pod is None:
            raise ApiError(404, "NotFound", "not found")
        if any(pod["metadata"][key] != meta[key] for key in ("uid", "resourceVersion")):
            raise ApiError(409, "Conflict", "the object has been modified")
        self._check_hand_over(pod, late)
        for part in ("labels", "annotations"):
            pod["metadata"][part] |= meta[part]
        pod["metadata"]["ownerReferences"] = meta["ownerReferences"]
        pod["spec"] |= body["spec"]
        process = self._world.process(pod)
        process.state, process.attempt = "running", int(meta["labels"][ATTEMPT_LABEL])
        self.handed_over += 1
        return self.changed(pod)

    def add_warm(self, body: Json) -> None:
        """A pod of a pool, whose runner waits."""
        uid = f"pod-{len(self._world.processes)}"
        name, now = f"ready-warm-{uid}", stamp(self._world.now)
        body["kind"] = "Pod"
        body["metadata"] |= {"name": name, "uid": uid, "creationTimestamp": now}
        body["spec"]["nodeName"] = "node-a"
        state = {"running": {"startedAt": now}}
        running = {"phase": "Running", "startTime": now}
        body["status"] = running | {"containerStatuses": [{"name": CONTAINER, "state": state}]}
        self.pods[name] = body
        self._world.processes[uid] = Process(0, name, "idle")
        self.changed(body, "ADDED")

    def _delete(self, path: str, body: Json) -> Json:
        obj = self._find(path)
        if obj is None:
            raise ApiError(404, "NotFound", "not found")
        if obj["metadata"]["uid"] != body["preconditions"]["uid"]:
            raise ApiError(409, "Conflict", "the UID in the precondition does not match")
        version = obj["metadata"]["resourceVersion"]
        if body["preconditions"].get("resourceVersion", version) != version:
            raise ApiError(409, "Conflict", "the version in the precondition does not match")
        if obj is self.job:
            self.remove_job()
            return {"kind": "Status"}
        self.delete_pod(obj, body.get("gracePeriodSeconds"))
        return {"kind": "Pod"} | obj

    def _patch(self, version: str, status: Json) -> Json:
        if self.job is None:
            raise ApiError(404, "NotFound", "not found")
        if version != self.job["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        old = self.job.get("status", {})
        new = {k: v for k, v in (old | status).items() if v is not None}
        if new.get("reason") == RESERVED != old.get("reason"):
            self._check_creation(new["attempt"])
        self._check_status(old, new)
        self.status_writes += 1
        self.job["status"] = new
        return self.changed(self.job)

    # What changes objects, for the operator, users and the kubelet alike.

    def changed(self, obj: Json, event: str = "MODIFIED") -> Json:
        """Give an object its next version, and tell the watchers."""
        self._revision += 1
        obj["metadata"]["resourceVersion"] = str(self._revision)
        events = self.job_events if obj["kind"] == KIND else self.pod_events
        events.append((event, copy.deepcopy(obj)))
        return obj

    def delete_pod(self, pod: Json, grace: int | None = None) -> None:
        """Delete a pod: at once when nothing of it can run, by the kubelet's hand otherwise."""
        stillborn = "nodeName" not in pod["spec"]
        done = pod["status"]["phase"] in ("Succeeded", "Failed") or stillborn
        if "finalizers" in pod["metadata"] and stillborn:
            self._world.process(pod).state = "ended"
        elif done or grace == 0:
            self.remove_pod(pod)
            return
        grace = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        pod["metadata"].setdefault("deletionTimestamp", stamp(self._world.now + timedelta(seconds=grace)))
        self.changed(pod)

    def remove_pod(self, pod: Json) -> None:
        """The object goes. A container goes with it, unless its kubelet hangs."""
        process = self._world.processes[pod["metadata"]["uid"]]
        if not (process.hung and process.state == "running"):
            process.state = "ended"
        del self.pods[pod["metadata"]["name"]]
        self.changed(pod, "DELETED")

    def remove_job(self) -> None:
        """The job goes, and the garbage collector takes its pods."""
        assert self.job is not None
        self.changed(self.job, "DELETED")
        self.job = None
        for pod in list(self.pods.values()):
            if pod["metadata"]["ownerReferences"][0]["kind"] == KIND:
                self.delete_pod(pod)

    # What must hold. Bounds and deadline count from the last rerun.

    def _check_creation(self, number: int) -> None:
        world, job = self._world, self.job
        assert job is not None, "a pod was made for a job that is gone"
        assert world.operator is not None
        known = world.operator.cache.jobs[KEY]
        assert not known.spec.cancel, "a pod was made after the cancel was seen"
        assert not known.spec.suspend, "a pod was made after the suspension was seen"
        others = [p for p in world.processes.values() if p.live and not p.excused]
        assert not others, f"pod {number} was made while pod {others[0].attempt} may still run"
        status = JobStatus.model_validate(job.get("status", {}))
        assert world.admitted, "a pod was made without a slot"
        assert world.time_left() > 0, "a pod was made after the deadline"
        unmet = set(known.spec.depends_on) - world.completed
        assert not unmet, f"a pod was made before {unmet} completed"
        assert not status.phase.terminal, "a pod was made for a job at its end"
        assert status.open_attempt is None, f"pod {number} was made while attempt {status.attempt} is open"
        assert number == status.attempt + 1, f"pod {number} follows attempt {status.attempt}"
        forgiven = status.attempts_forgiven
        suspended = sum(a.outcome == "suspended" for a in status.attempts[forgiven:])
        counted = number - forgiven - suspended
        assert counted <= world.most_attempts, f"{counted} attempts were made, {world.most_attempts} are allowed"

    def _check_hand_over(self, pod: Json, late: bool) -> None:
        world, job = self._world, self.job
        assert world.process(pod).state == "idle", "a pod was given to a job that is not new"
        if job is None:
            assert late, "a pod was given to a job that is gone"
            return
        status = JobStatus.model_validate(job.get("status", {}))
        name, open_attempt = pod["metadata"]["name"], status.open_attempt
        named = open_attempt.pod_name if open_attempt else None
        assert named == name, f"pod {name} was given to a job that does not name it"
        others = [p for p in world.processes.values() if p.live and not p.excused]
        assert not others, f"pod {name} was given to a job while pod {others[0].attempt} may still run"
        known = world.operator.cache.jobs[KEY].spec if world.operator and not late else None
        assert not (known and (known.cancel or known.suspend)), "a pod was given to a job that is not to run"

    def _check_status(self, old: Json, new: Json) -> None:
        status = JobStatus.model_validate(new)
        numbers = [a.attempt for a in status.attempts]
        assert numbers == list(range(1, len(numbers) + 1)), f"attempts are numbered {numbers}"
        assert status.attempt == len(numbers), f"status.attempt is {status.attempt} of {len(numbers)}"
        for closed in status.attempts[:-1]:
            assert closed.outcome, f"attempt {closed.attempt} is open, and not the last"
        before = {one["attempt"]: one for one in old.get("attempts", [])}
        for one in status.attempts:
            if "outcome" not in before.get(one.attempt, {}):
                self._check_end(one)
            assert (one.end_time is None) == (one.outcome is None), f"attempt {one.attempt} is half closed"
        if status.phase in (Phase.STARTING, Phase.RUNNING):
            assert status.open_attempt, f"phase {status.phase} without an open attempt"
        if old.get("phase") == "Running" and old.get("attempt") == status.attempt:
            assert status.phase is not Phase.STARTING, "a running attempt went back to its start"
        if status.phase.terminal:
            assert not status.open_attempt, "the job is at its end, its attempt is not"
            assert status.completion_time, "the job is at its end without a completionTime"
        if status.phase is Phase.FAILED and status.reason == "dependency":
            assert not status.attempts, "its dependencies had completed before it ran"
            assert self._world.hopeless, "no dependency has failed, and none goes in a circle"
        before_status = JobStatus.model_validate(old)
        if before_status.phase.terminal and before_status.rerun != status.rerun:
            self._check_rerun(before_status, status)
        elif before_status.phase.terminal:
            for name in ("phase", "completionTime", "attempts"):
                assert old.get(name) == new.get(name), f"{name} changed after the job's end"
        else:
            for name in ("rerun", "attemptsForgiven"):
                assert old.get(name, 0) == new.get(name, 0), f"{name} changed before the job's end"

    def _check_end(self, attempt: AttemptStatus) -> None:
        """An attempt that is closed now."""
        pod = self.pods.get(attempt.pod_name)
        if attempt.category == "pod_lost":
            alive = pod and self._world.process(pod).state != "ended"
            assert not alive, f"attempt {attempt.attempt} was taken for lost while its pod may still run"
        if attempt.category == "unschedulable":
            gated = pod and "schedulingGates" in pod["spec"]
            assert not gated, f"attempt {attempt.attempt} was given up while Kueue held its pod back"

    def _check_rerun(self, old: JobStatus, new: JobStatus) -> None:
        assert self.job is not None
        assert old.phase is Phase.FAILED, f"a job that has {old.phase} runs again"
        asked = self.job["spec"].get("rerun", 0)
        assert old.rerun < new.rerun <= asked, f"rerun {new.rerun} follows {old.rerun}, and {asked} is asked for"
        assert not new.phase.terminal, "a rerun ended as it began"
        assert new.attempts == old.attempts, "a rerun changed what was"
        assert new.attempts_forgiven == old.attempt, "a rerun does not count anew"


class NoWork(WorkQueue[Key]):
    """How many pods a pool has is for the world to say."""

    def add_after(self, key: Key, seconds: float) -> None:
        pass


class Operator:
    """One life of the operator's process: it lists everything, then lives on what it is told.

    ``behind`` is how many events old its first listing of the pods is: an API server may answer from a cache.
    """

    def __init__(self, world: World, behind: int = 0) -> None:
        self._world = world
        self.cache = Cache()
        api = cast(KubeClient, world.api)
        self._pools = Pools(api, world.settings.model_copy(update={"warm_pools": True}), NoWork())
        self._applier = Applier(api, self.cache, self._pools, world.settings)
        self._live: dict[str, LiveReport] = {}
        self._jobs_heard, self._pods_heard = len(world.api.job_events), 0
        if behind:
            self.list_jobs()
            self.hear(0, max(0, len(world.api.pod_events) - behind))
        else:
            self.resync()
            self._pods_heard = len(world.api.pod_events)

    def resync(self) -> None:
        """List everything; the events that are on their way still come."""
        self.list_jobs()
        api = self._world.api
        for pod in api.pods.values():
            self._pools.on_pod(None, copy.deepcopy(pod))
            self.cache.put_pod(copy.deepcopy(pod))
        there = {pod["metadata"]["uid"] for pod in api.pods.values()}
        for view in self.cache.all_pods():
            if view.uid not in there:
                self.cache.drop_pod(view.job, view.name, view.uid)
        finish(self._pools.resync([], [pod for pod in self._pools.pods if pod.uid not in there]))

    def list_jobs(self) -> None:
        """List the jobs, and mirror what they say of all their attempts."""
        api = self._world.api
        there = [*([api.job] if api.job else []), *api.neighbours.values()]
        for obj in there:
            self.cache.put_job(copy.deepcopy(obj))
        uids = {obj["metadata"]["uid"] for obj in there}
        for held in list(self.cache.jobs.values()):
            if held.uid not in uids:
                self.cache.drop_job(held.key, held.uid)
        job = self.cache.jobs.get(KEY)
        for row in rows_of(job) if job else []:
            self._world.mirror(row)

    def hear(self, jobs: int = 10**9, pods: int = 10**9) -> None:
        """Get that many of the events that are on their way."""
        api = self._world.api
        for event, obj in api.job_events[self._jobs_heard : self._jobs_heard + jobs]:
            self._jobs_heard += 1
            if event == "DELETED":
                self.cache.drop_job((obj["metadata"]["namespace"], obj["metadata"]["name"]), obj["metadata"]["uid"])
            else:
                self.cache.put_job(obj)
        for event, obj in api.pod_events[self._pods_heard : self._pods_heard + pods]:
            self._pods_heard += 1
            self._pools.on_pod(event, copy.deepcopy(obj))
            view = self.cache.put_pod(obj)
            if event == "DELETED" and view:
                self.cache.drop_pod(view.job, view.name, view.uid)

    def read_log(self, process: Process, lines: int = 10**9) -> None:
        """Read on in a pod's log, as long as there is one."""
        if process.pod_name not in self._world.api.pods:
            return
        key = process_id(cast(Json, self._world.job)["metadata"]["uid"], process.attempt)
        known = self._live.get(key)
        at = process.log.index(known) if known in process.log else 0
        at = min(at + lines, len(process.log) - 1)
        self._live[key] = process.log[at]

    def reconcile(self) -> float | None:
        """See, decide, act, mirror, as the controller does; returns after how long to look again."""
        job = self.cache.jobs.get(KEY)
        if job is None:
            return None
        pods = self.cache.pods_of(job)
        newest = max([job.status.attempt, *(pod.attempt for pod in pods)])
        live = self._live.get(process_id(job.uid, newest))
        seen = Seen(
            job=job,
            pods=pods,
            live=live,
            admitted=self._world.admitted,
            waiting_message="waits for a slot",
            now=self._world.now,
            dependencies=self.cache.dependencies_of(job),
            cycle=self.cache.cycle_of(job),
            warm=self._pools.offer(job),
        )
        decision = self._world.decide(seen, self._world.settings)
        assert decision == self._world.decide(seen, self._world.settings), "the same view, and another decision"
        self._pools.hold(KEY, decision.reserve or decision.hand_over or decision.take_back)
        try:
            return finish(self._applier.apply(job, decision))
        except (Stale, ApiError):
            return 1.0
        finally:
            self._mirror(live)

    def _mirror(self, live: LiveReport | None) -> None:
        job: JobView | None = self.cache.jobs.get(KEY)
        row = row_of(job, job.status, live) if job else None
        if row:
            self._world.mirror(row)


class World:
    """Everything at once. Its methods are what may happen.

    Attributes:
        admitted: whether there is a slot for the job.
        hindrance: what keeps every container from starting: reason and message.
        gating: Kueue holds new pods back.
        calm_end: how containers end once nothing bad happens any more.
        endless: the agent works until it is told to stop.
        completed: names of the jobs beside it that have ever completed.
        hopeless: a job that this one depends on has failed or was cancelled, or depended on it, at some time.
    """

    def __init__(self, settings: Settings, spec: Json | None = None, decide: Decide = decide) -> None:
        self.settings = settings
        self.decide = decide
        self.now = NOW
        self.admitted = True
        self.hindrance: tuple[str, str] | None = None
        self.gating = False
        self.calm_end = COMPLETED
        self.endless = False
        self.completed: set[str] = set()
        self.hopeless = False
        self.processes: dict[str, Process] = {}
        self.rows: dict[str, ProcessState] = {}
        self._neighbours = 0
        self._edges: set[tuple[str, str]] = set()
        self.api = ApiServer(self)
        self.api.job = job_object(spec, creationTimestamp=stamp(self.now))
        self.api.changed(self.api.job, "ADDED")
        self.operator: Operator | None = Operator(self)
        allowed = (spec or {}).get("retry", {}).get("maxAttempts") or settings.retry_attempts
        self.most_attempts = allowed + settings.max_disruptions

    @property
    def job(self) -> Json | None:
        return self.api.job

    @property
    def status(self) -> JobStatus:
        assert self.api.job is not None
        return JobStatus.model_validate(self.api.job.get("status", {}))

    # The operator.

    def reconcile(self, cut: Cut | None = None) -> float | None:
        """One reconciliation, which may be cut."""
        if self.operator is None:
            self.operator = Operator(self)
        self.api.calls, self.api.cut = 0, cut
        try:
            return self.operator.reconcile()
        except Crash:
            self.operator = None
            return None
        finally:
            self.api.cut = None

    def mirror(self, row: ProcessState) -> None:
        """A row on its way to the store must not contradict what was there before."""
        old = self.rows.get(row.process_id)
        if old:
            assert row.status.rank >= old.status.rank, f"row {row.process_id}: {old.status} became {row.status}"
            if old.status.terminal and row.attempt:  # 0 is a job that never ran: the store keeps its first ending
                assert row.status == old.status, f"row {row.process_id}: {old.status} became {row.status}"
                assert row.end_time == old.end_time, f"row {row.process_id} ended twice"
        self.rows[row.process_id] = row

    # The kubelet and the rest of the cluster.

    def process(self, pod: Json) -> Process:
        return self.processes[pod["metadata"]["uid"]]

    def add_warm(self) -> None:
        """A pool makes a pod that waits for a job like this one."""
        if self.job is not None:
            spec = self.job["spec"]
            template = {"terminationGracePeriodSeconds": spec.get("terminationGracePeriodSeconds", 15)}
            pool = PoolSpec.model_validate({"size": 1, "template": template})
            view = PoolView("team", "ready", "pool-uid", "1", 1, deleting=False, spec=pool, status=PoolStatus())
            self.api.add_warm(build_warm_pod(view, self.settings))

    def late_requests(self) -> None:
        """What was on its way arrives."""
        for request in self.api.late:
            with suppress(ApiError):
                request()
        self.api.late.clear()

    def start(self, pod: Json) -> None:
        """The scheduler binds a pod; then the kubelet starts its container."""
        process = self.process(pod)
        if process.hung or pod["status"]["phase"] != "Pending" or "deletionTimestamp" in pod["metadata"]:
            return
        if "schedulingGates" in pod["spec"]:
            return
        if "nodeName" not in pod["spec"]:
            pod["spec"]["nodeName"] = "node-a"
            pod["status"] = {"phase": "Pending"}
        else:
            process.state = "running"
            state = {"running": {"startedAt": stamp(self.now)}}
            pod["status"] = {"phase": "Running", "containerStatuses": [{"name": CONTAINER, "state": state}]}
        self.api.changed(pod)

    def hinder(self, pod: Json, reason: str, message: str) -> None:
        """Something keeps a pod from starting."""
        if pod["status"]["phase"] != "Pending" or "schedulingGates" in pod["spec"]:
            return
        if "nodeName" in pod["spec"]:
            state = {"waiting": {"reason": reason, "message": message}}
            pod["status"]["containerStatuses"] = [{"name": CONTAINER, "state": state}]
        else:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no nodes"}
            pod["status"]["conditions"] = [condition]
        self.api.changed(pod)

    def work(self, pod: Json, percent: int) -> None:
        """The agent gets on, and its log says so."""
        process = self.process(pod)
        if process.state == "running":
            process.log.append(replace(process.log[-1], progress=max(percent, process.log[-1].progress)))

    def end(self, pod: Json, end: End) -> None:
        """The container ends. The pod's phase follows later, in ``settle``."""
        process = self.process(pod)
        if process.hung or process.state != "running":
            return
        process.state = "ended"
        result: RunnerResult | None = parse_result(end.message)
        last = process.log[-1]
        process.log.append(replace(last, result=result if end.logged else None))
        process.log.append(replace(process.log[-1], drained=True))
        ended = {"exitCode": end.code, "reason": end.reason, "message": end.message, "finishedAt": stamp(self.now)}
        started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        state = {"terminated": ended | {"startedAt": started}}
        pod["status"]["containerStatuses"] = [{"name": CONTAINER, "state": state}]
        self.api.changed(pod)

    def settle(self, pod: Json) -> None:
        """The kubelet reports a pod whose container has ended, and lets a deleted one go."""
        process = self.process(pod)
        if process.hung:
            return
        deleted, phase = "deletionTimestamp" in pod["metadata"], pod["status"]["phase"]
        if process.state == "idle":
            if deleted:
                self.api.remove_pod(pod)
            return
        stillborn = deleted and "nodeName" not in pod["spec"]
        if phase in ("Succeeded", "Failed") or stillborn or (deleted and process.state == "waiting"):
            if deleted:
                self.api.remove_pod(pod)
        elif process.state == "ended":
            code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
            pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
            self.api.changed(pod)

    def evict(self, pod: Json) -> None:
        """The kubelet evicts a pod, and the container's own record is lost."""
        process = self.process(pod)
        if process.hung or pod["status"]["phase"] in ("Succeeded", "Failed"):
            return
        process.state = "ended"
        pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        self.api.changed(pod)

    def preempt(self, pod: Json) -> None:
        """The scheduler makes room for another pod."""
        if "nodeName" in pod["spec"] and pod["status"]["phase"] not in ("Succeeded", "Failed"):
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
            pod["status"]["conditions"] = [condition]
            self.api.delete_pod(pod)

    def admit(self, pod: Json) -> None:
        """Kueue lets a pod be scheduled."""
        if "deletionTimestamp" not in pod["metadata"] and pod["spec"].pop("schedulingGates", None):
            self.api.changed(pod)

    def take_back(self, pod: Json) -> None:
        """Kueue needs the place of a pod that it has admitted for another one."""
        if "schedulingGates" in pod["spec"] or pod["status"]["phase"] in ("Succeeded", "Failed"):
            return
        condition = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvictedDueToPreempted"}
        pod["status"]["conditions"] = [condition]
        self.api.delete_pod(pod)

    # Users.

    def set_spec(self, **fields: Any) -> None:
        if self.job is not None:
            self.job["spec"] |= fields
            self.job["metadata"]["generation"] += 1
            self.api.changed(self.job)

    def rerun(self) -> None:
        """Ask for another run, whatever the job does now."""
        if self.job is not None:
            self.set_spec(rerun=self.job["spec"].get("rerun", 0) + 1)

    def neighbour(self, name: str, phase: str, depends_on: Sequence[str] = ()) -> None:
        """Another job is made (with what it depends on), or gets to that phase."""
        obj = self.api.neighbours.get(name)
        event = "MODIFIED" if obj else "ADDED"
        if obj is None:
            self._neighbours += 1
            obj = job_object({"dependsOn": list(depends_on)}, name=name, uid=f"neighbour-{self._neighbours}")
            self.api.neighbours[name] = obj
        obj["status"] = {"phase": phase}
        if phase == "Completed":
            self.completed.add(name)
        if self.job:
            wanted = self.job["spec"].get("dependsOn", [])
            self._edges |= {(name, other) for other in obj["spec"]["dependsOn"]}
            self.hopeless |= name in wanted and phase in ("Failed", "Cancelled")
            self.hopeless |= any(_reaches(self._edges, other, KEY[1]) for other in wanted)
        self.api.changed(obj, event)

    def remove_neighbour(self, name: str) -> None:
        """Another job is deleted."""
        self.api.changed(self.api.neighbours.pop(name), "DELETED")

    def delete_by_hand(self, pod: Json, force: bool) -> None:
        if force:
            self.process(pod).excused = True
        self.api.delete_pod(pod, 0 if force else None)

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def time_left(self) -> float:
        """Seconds until the job's deadline, by what its status says; infinite when nothing sets an end."""
        deadline = self.job["spec"].get("activeDeadlineSeconds") if self.job else None
        if deadline is None or self.status.start_time is None:
            return inf
        return (self.status.start_time + timedelta(seconds=deadline) - self.now).total_seconds()

    # Calm.

    def calm(self, rounds: int = 150) -> None:
        """Nothing bad happens any more: let everything take its course, for a bounded time."""
        self.hindrance = None
        self.late_requests()
        for process in self.processes.values():
            process.hung = False
            if process.state == "running" and process.pod_name not in self.api.pods:
                process.state = "ended"
        for _ in range(rounds):
            for pod in list(self.api.pods.values()):
                self.take_its_course(pod, self.calm_end)
            after = self._look()
            busy = any(process.live for process in self.processes.values())
            self.pass_time(1 if busy else max(after or 0, 1))
            if self.at_rest():
                return

    def take_its_course(self, pod: Json, end: End = COMPLETED) -> None:
        """The next step of a pod that nothing but ``self.hindrance`` hinders.

        ``end`` is how its container ends, unless it was told to stop.
        """
        deleted, process = "deletionTimestamp" in pod["metadata"], self.process(pod)
        if pod["status"]["phase"] == "Pending" and not deleted:
            if "schedulingGates" in pod["spec"]:
                self.admit(pod)
            elif self.hindrance and "nodeName" in pod["spec"]:
                self.hinder(pod, *self.hindrance)
            else:
                self.start(pod)
        elif process.state == "running":
            if deleted or not self.endless:
                self.end(pod, STOPPED if deleted else end)
        else:
            self.settle(pod)

    def _look(self) -> float | None:
        if self.operator is None:
            self.operator = Operator(self)
        self.operator.hear()
        for process in self.processes.values():
            if self.job is not None:
                self.operator.read_log(process)
        return self.reconcile()

    def at_rest(self) -> bool:
        """Whether the job is at its end, or waits for what only others can give, and nothing of it runs."""
        if any(p.live and not p.excused for p in self.processes.values()):
            return False
        if self.job is None:
            return True
        status, spec = self.status, self.job["spec"]
        if status.phase.terminal:
            return not (status.phase is Phase.FAILED and spec.get("rerun", 0) > status.rerun)
        if spec.get("cancel"):
            return False
        if spec.get("suspend"):
            return status.phase is Phase.SUSPENDED and status.reason == "Suspended"
        if status.start_time and "activeDeadlineSeconds" in spec:
            return False
        if status.phase is Phase.PENDING and status.reason == "Dependencies":
            return not status.attempts and self._can_be_hoped_for(spec["dependsOn"])
        return not self.admitted and status.phase is Phase.QUEUED and status.reason == "ConcurrencyLimit"

    def _can_be_hoped_for(self, wanted: Sequence[str]) -> bool:
        """Whether some of these jobs have not completed, and none has failed or waits for this very job."""
        there = self.api.neighbours
        phases = [there[name]["status"]["phase"] if name in there else "" for name in wanted]
        edges = {(name, other) for name, obj in there.items() for other in obj["spec"]["dependsOn"]}
        failed, open_ones = {"Failed", "Cancelled"} & set(phases), [phase for phase in phases if phase != "Completed"]
        return bool(open_ones) and not failed and not any(_reaches(edges, name, KEY[1]) for name in wanted)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    raise AssertionError("the coroutine waits for something")


def _reaches(edges: set[tuple[str, str]], name: str, goal: str) -> bool:
    """Whether one job depends on another, directly or not."""
    reached, before = {name}, set[str]()
    while reached != before:
        before = set(reached)
        reached |= {wanted for dependent, wanted in edges if dependent in before}
    return goal in reached
