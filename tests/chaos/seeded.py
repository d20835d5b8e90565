"""Deliberate bugs, each of which the enumeration of faults must find; and the launcher that puts them in.

As a program this is a fork server: it has imported the operator, and forks a new one for each line of its input,
which is why a restart takes a tenth of a second. A line is a JSON object with ``environment``, ``folder``, ``log`` and
``bug`` (a name or null); the answer is the process id.
"""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from claudejobs import main as composition
from claudejobs.api.categories import POLICIES
from claudejobs.api.queue_job import QueueJob
from claudejobs.intake import handling
from claudejobs.intake.handling import Handler
from claudejobs.intake.plan import Step
from claudejobs.kube import apply
from claudejobs.kube.apply import Applier, Stale
from claudejobs.kube.cache import Cache
from claudejobs.kube.client import ApiError, KubeClient
from claudejobs.kube.controller import Controller
from claudejobs.reconcile import decide, pod
from claudejobs.settings import Settings

OUTDATED = "this bug must be put in anew"
"""Stands in the log when a bug does not fit the operator any more: it would show itself, but as another bug."""


def _swap(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: {OUTDATED}"
    if callable(value):
        parameters = inspect.signature(getattr(owner, name)).parameters
        try:
            inspect.signature(value).bind(*parameters)
        except TypeError as error:
            raise AssertionError(f"{name} takes {', '.join(parameters)} now: {OUTDATED}") from error
    setattr(owner, name, value)


def ignore_confirm_gone() -> None:
    """A pod that the view does not have is taken for lost without asking the API server."""

    async def confirm(*_: Any) -> None:
        return None

    _swap(Applier, "_confirm_gone", confirm)


def status_before_pod() -> None:
    """The status that speaks of the pod is written before the pod is made."""
    create = Applier._create_pod

    async def late(self: Applier, job: Any, attempt: int, claim: str | None, status: Any) -> Any:
        await self._write_status(job, status)
        now = self._cache.jobs[job.key]
        return await create(self, now, attempt, claim, status)

    _swap(Applier, "_create_pod", late)


def exists_is_failure() -> None:
    """409 AlreadyExists is taken for a pod that cannot be made."""

    async def adopt(self: Applier, job: Any, attempt: int) -> None:
        await self._write_status(job, self._unbuildable(job, f"pod {attempt} exists"))
        raise Stale("exists")

    _swap(Applier, "_adopt", adopt)


def never_resync() -> None:
    """Nothing is listed again after the start."""

    async def nothing(_: Controller) -> None:
        return None

    _swap(Controller, "_resync_periodically", nothing)


def any_uid() -> None:
    """The pods of a job are told by the job's name alone."""
    _swap(Cache, "pods_of", lambda self, job: list(self._pods.get(job.key, {}).values()))
    adopt = Applier._adopt

    async def adopt_any(self: Applier, job: Any, attempt: int) -> None:
        try:
            await adopt(self, job, attempt)
        except ApiError:
            return

    _swap(Applier, "_adopt", adopt_any)


def no_precondition() -> None:
    """A status is written over whatever version there is."""
    patch = KubeClient.request

    async def careless(self: KubeClient, method: str, path: str, body: Any = None, *args: Any, **kwargs: Any) -> Any:
        if method == "PATCH" and path.endswith("/status"):
            careful = {"/metadata/resourceVersion"}
            assert careful & {step["path"] for step in body}, "the precondition is elsewhere: " + OUTDATED
            body = [step for step in body if step["path"] not in careful]
        return await patch(self, method, path, body, *args, **kwargs)

    _swap(KubeClient, "request", careless)


def no_orphans() -> None:
    """Rows of jobs that were deleted while no operator ran are not looked for."""

    async def none(_: Controller) -> int:
        return 0

    _swap(Controller, "close_orphans", none)


def random_pod_names() -> None:
    """Two operators call the pod of one attempt differently, and what a status does not record is not looked for."""

    def base(seen: Any) -> Any:
        return seen.job.status.model_copy(update={"observed_generation": seen.job.generation})

    def name_of(job_name: str, attempt: int) -> str:
        return f"{job_name}-{attempt}{os.getpid()}"

    _swap(decide, "_base", base)
    for user in (pod, decide, apply):
        _swap(user, "pod_name", name_of)


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        ignore_confirm_gone,
        status_before_pod,
        exists_is_failure,
        never_resync,
        any_uid,
        no_precondition,
        no_orphans,
        random_pod_names,
    )
}


def random_resource_names() -> None:
    """Two operators call the resource of one queue job differently."""

    def name(self: QueueJob) -> str:
        return f"job-{self.id.replace(':', '-')}-{self.deliveries}-{os.getpid()}"

    _swap(QueueJob, "resource_name", property(name))


def chain_only_when_fetched() -> None:
    """A job scheduler's next job is made when one was fetched, and never made up for."""
    do = Handler.do

    async def forgetful(self: Handler, step: Step, identity: Any, job: Any, loaded: Any = None) -> None:
        if step is not Step.SCHEDULE_NEXT or loaded is not None:
            await do(self, step, identity, job, loaded)

    _swap(Handler, "do", forgetful)


def random_letters() -> None:
    """A dead letter is another one each time that it is put down."""
    bury = handling.bury

    async def again(bull: Any, dead: Any, *args: Any) -> None:
        other = replace(dead.identity, timestamp=time.time_ns())
        await bury(bull, replace(dead, active=replace(dead.active, identity=other)), *args)

    _swap(handling, "bury", again)


QUEUE_BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (random_resource_names, chain_only_when_fetched, random_letters)
}


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _run_operator(order: dict[str, Any]) -> int:
    """Be the operator; the exit code."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(order["log"], "ab") as log, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    environment = {"KUBECONFIG": os.environ["KUBECONFIG"]} | order["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(order["folder"])
    faulthandler.register(signal.SIGUSR1)  # what a stuck operator does is then in its log
    if order["bug"]:
        (BUGS | QUEUE_BUGS)[order["bug"]]()
    # The least time between attempts is there for model APIs, and would make up most of a run.
    for category, policy in POLICIES.items():
        POLICIES[category] = replace(policy, backoff_seconds=min(policy.backoff_seconds, 1))
    return composition.main(Settings.load())


def serve() -> None:
    """Fork one operator per line of standard input, until that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _run_operator(order)
            except BaseException as error:
                print(f"the operator ended: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
