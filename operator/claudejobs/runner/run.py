"""One attempt: the agent's processes, the deadlines, and the result.

The clocks. ``timeout_seconds`` bounds the attempt, restarts included. ``stall_timeout_seconds`` bounds the
time without any message of the SDK, and stands still while a tool call is open: a test run of half an hour
says nothing and is no stall. A silent model is found by it, a hanging tool only by the timeout.

The ladder. Whatever stops the agent, it is interrupted, and has ``interrupt_seconds`` to end its turn; then it and all
that it started get SIGTERM, and what is left gets SIGKILL so early within ``grace_seconds`` that the result still comes
before the kubelet's own SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeSDKClient, ResultMessage

from claudejobs.api.categories import Category
from claudejobs.api.events import Outcome, RunnerInput, RunnerResult, Usage

from . import sandbox
from .classify import Ending, Report, StopReason, Verdict, classify, is_crash, lost_session
from .emit import EventWriter, StderrRelay, one_line
from .options import OptionError, Process, build_env, build_options
from .processes import ZombieReaper, kill_descendants, terminate_descendants
from .progress import TaskList
from .relay import Relay
from .workspace import StateDir, WorkspaceError, prepare_directory

DISCONNECT_SECONDS = 2.0
RESERVE_SECONDS = 4.0
"""The end of the grace period that is kept for SIGKILL and the result; at most half of what the interrupt leaves."""
LAST_WORDS_SECONDS = 1.0
"""How long what a dead agent has left in its pipe is read."""
TICK_SECONDS = 0.25
SWEEP_TICKS = 20

GO_ON = (
    "The previous run of this task was interrupted before it ended. Go on from where it stopped: check what "
    "the last steps did before you repeat any, and finish the task as it was asked."
)


class Attempt:
    """Runs the agent for one attempt of a job; ``stop`` may be called at any time, from the same loop."""

    def __init__(self, job: RunnerInput, writer: EventWriter, workspace: Path, state_path: Path) -> None:
        self._job = job
        self._writer = writer
        self._workspace = workspace
        self._state_path = state_path
        self._stderr = StderrRelay(writer)
        self._tasks = TaskList()
        self._reaper = ZombieReaper()
        self._stopping = asyncio.Event()
        self._stop_reason: StopReason | None = None
        self._stop_time = 0.0
        self._deadline = time.monotonic() + job.timeout_seconds
        self._relay: Relay | None = None
        self._restarts = 0
        self._turns = 0
        self._model: str | None = None
        self._resumed: bool | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the agent, by force if need be, and end the attempt; the first reason counts."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._stop_time = time.monotonic()
            self._writer.notice(f"stopping the agent: {reason}", "warning")
            self._stopping.set()

    async def run(self) -> RunnerResult:
        """Run to the end, whatever it is; never raises for anything that the job or the agent did."""
        try:
            self._directory = prepare_directory(self._workspace, self._job.working_directory)
            self._state = StateDir(self._state_path)
        except WorkspaceError as error:
            return _failed(Category.WORKSPACE, str(error))
        if note := self._state.take_note():
            self._writer.notice(note)
        self._memory = self._state.load()
        self._baseline = self._memory.session(self._job.session_id).model_copy(deep=True)
        self._spent_before = self._memory.job(self._job.job_uid).spent_usd
        watch = asyncio.create_task(self._watch())
        try:
            ending = await self._run_processes()
        except OptionError as error:
            return _failed(Category.INVALID_REQUEST, str(error))
        finally:
            watch.cancel()
            self._stderr.close()
        return self._conclude(ending)

    async def _run_processes(self) -> Ending:
        """Run the CLI; after a crash, again, going on with the session where there is a transcript."""
        while True:
            budget = self._budget_left()
            if budget is not None and budget <= 0:
                return Ending(report=Report("error_max_budget_usd", is_error=True, text="the budget is spent"))
            ending = await self._run_process(budget)
            if self._stop_reason is not None or self._restarts >= self._job.max_restarts:
                return ending
            if lost_session(ending):
                why = "the session's transcript could not be resumed; starting the session anew"
                self._set_transcript_aside()
            elif is_crash(ending):
                why = f"{classify(ending).message}; starting it again"
            else:
                return ending
            self._restarts += 1
            self._writer.notice(f"{why} (restart {self._restarts} of {self._job.max_restarts})", "warning")

    async def _run_process(self, budget: float | None) -> Ending:
        """One process of the CLI, from its start to the death of everything that it left behind."""
        resume = self._state.has_transcript(self._job.session_id)
        if self._resumed is None:  # a restart inside the pod resumes, too, but is the same attempt
            self._resumed = resume
        relay = self._relay = Relay(self._writer, self._tasks, resume)
        options = build_options(
            self._job,
            Process(resume=resume, budget_usd=budget),
            directory=self._directory,
            config_dir=self._state.config_dir,
            environ=os.environ,
            stderr=self._stderr,
            launch=_launch(self._workspace),
        )
        client = ClaudeSDKClient(options)
        go_on = resume and self._memory.job(self._job.job_uid).delivered
        talk = asyncio.create_task(self._talk(client, relay, GO_ON if go_on else self._job.prompt))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({talk, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stop_reason is not None:
            await self._stop_agent(client, relay, talk)
        await self._disconnect(client)
        left = kill_descendants()
        if left:
            self._writer.notice(f"processes that cannot be killed: {left}", "error")
        self._turns += relay.turns
        self._model = relay.model or self._model
        return self._ending(relay, talk)

    async def _talk(self, client: ClaudeSDKClient, relay: Relay, prompt: str) -> None:
        """Say the prompt and take what comes until the CLI ends.

        The CLI's input stays open until the first result, as an interrupt travels on it. Then it is closed:
        the CLI finishes its background agents, if any, gives their results, and exits by itself.
        """
        answered = asyncio.Event()

        async def prompts() -> AsyncIterator[dict[str, Any]]:
            message = {"role": "user", "content": prompt}
            yield {"type": "user", "message": message, "parent_tool_use_id": None, "session_id": "default"}
            await answered.wait()

        await client.connect(prompts())
        async for message in client.receive_messages():
            relay.take(message)
            if isinstance(message, ResultMessage):
                self._account(message)
                answered.set()
            if relay.spoke:
                self._remember_delivery()
            if relay.rejected:
                self.stop(StopReason.AUTH)

    async def _stop_agent(self, client: ClaudeSDKClient, relay: Relay, talk: asyncio.Task[None]) -> None:
        """Go down the ladder as far as needed. What the agent says meanwhile is still taken."""
        terminate_at = self._stop_time + self._job.interrupt_seconds
        rest = self._job.grace_seconds - self._job.interrupt_seconds
        kill_at = terminate_at + max(rest - RESERVE_SECONDS, rest / 2)
        if relay.started and not talk.done():
            with contextlib.suppress(Exception):
                async with asyncio.timeout_at(terminate_at):
                    await client.interrupt()
                    await asyncio.wait({talk})
            if not talk.done():
                self._writer.notice(
                    f"the agent did not end its turn within {self._job.interrupt_seconds:g} s of the interrupt "
                    "(spec.interruptSeconds); it gets SIGTERM",
                    "warning",
                )
        if left := await terminate_descendants(kill_at):
            self._writer.notice(f"{len(left)} processes of the agent live on after SIGTERM; they are killed", "warning")
            kill_descendants()
        await asyncio.wait({talk}, timeout=LAST_WORDS_SECONDS)
        if not talk.done():
            talk.cancel()
            await asyncio.wait({talk}, timeout=1)

    async def _disconnect(self, client: ClaudeSDKClient) -> None:
        closing = asyncio.create_task(client.disconnect())
        await asyncio.wait({closing}, timeout=DISCONNECT_SECONDS)
        if not closing.done():
            kill_descendants()
            await asyncio.wait({closing}, timeout=1)
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            self._writer.notice(f"closing the agent failed: {type(error).__name__}: {error}", "warning")

    async def _watch(self) -> None:
        """The clocks, and the collection of orphans."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            if time.monotonic() >= self._deadline:
                self.stop(StopReason.TIMEOUT)
            stall = self._job.stall_timeout_seconds
            if stall is not None and self._relay is not None and self._relay.silent_seconds >= stall:
                self.stop(StopReason.STALLED)
            if ticks % SWEEP_TICKS == 0:
                self._reaper.sweep()

    def _ending(self, relay: Relay, talk: asyncio.Task[None]) -> Ending:
        error = talk.exception() if talk.done() and not talk.cancelled() else None
        if isinstance(error, OptionError):
            raise error
        return Ending(
            report=Report.of_message(relay.result) if relay.result is not None else None,
            error=error,
            label=relay.label,
            stop=self._stop_reason,
            retry_status=relay.retry_status,
            started=relay.started,
            wants_output=self._job.claude.output_schema is not None,
            stderr=self._stderr.tail,
        )

    def _budget_left(self) -> float | None:
        limit = self._job.claude.max_budget_usd
        return None if limit is None else limit - self._memory.job(self._job.job_uid).spent_usd

    def _account(self, message: ResultMessage) -> None:
        """Keep the session's running totals, and what of them is this job's."""
        session = self._memory.session(self._job.session_id)
        session.cost_usd = message.total_cost_usd or session.cost_usd
        session.tokens = _tokens(message) or session.tokens
        self._memory.job(self._job.job_uid).spent_usd = self._spent_before + self._cost()
        self._save_memory()

    def _cost(self) -> float:
        """What this attempt cost: the session's total over what it was; all of it if the CLI counts anew."""
        total, before = self._memory.session(self._job.session_id).cost_usd, self._baseline.cost_usd
        return total - before if total >= before else total

    def _usage(self) -> Usage:
        total, before = self._memory.session(self._job.session_id).tokens, self._baseline.tokens
        anew = any(total.get(name, 0) < count for name, count in before.items())
        return Usage(**{name: count - (0 if anew else before.get(name, 0)) for name, count in total.items()})

    def _remember_delivery(self) -> None:
        memory = self._memory.job(self._job.job_uid)
        if not memory.delivered:
            memory.delivered = True
            self._save_memory()

    def _save_memory(self) -> None:
        try:
            self._state.save(self._memory)
        except OSError as error:
            self._writer.notice(f"cannot keep the runner's state in {self._state.path}: {error}", "warning")

    def _set_transcript_aside(self) -> None:
        for path in (self._state.config_dir / "projects").glob(f"*/{self._job.session_id}.jsonl"):
            path.rename(path.with_suffix(".unreadable"))

    def _conclude(self, ending: Ending) -> RunnerResult:
        verdict: Verdict = classify(ending)
        result = self._relay.result if self._relay is not None else None
        answered = result is not None and not result.is_error
        limited = verdict.category is Category.RATE_LIMITED and self._relay is not None
        return RunnerResult(
            outcome=verdict.outcome,
            category=verdict.category,
            message=one_line(self._writer.redact(verdict.message)),
            session_id=self._job.session_id,
            text=result.result if result is not None and answered else None,
            structured_output=result.structured_output if result is not None and answered else None,
            num_turns=self._turns,
            cost_usd=round(self._cost(), 6),
            usage=self._usage(),
            model=self._model,
            api_status=verdict.status,
            retry_after_seconds=self._relay.retry_after if limited and self._relay is not None else None,
            restarts=self._restarts,
            resumed=self._resumed,
        )


def _launch(workspace: Path) -> tuple[Path | None, Mapping[str, str]]:
    """The agent's CLI, shut in where the kernel can; else the SDK's own choice."""
    bundled = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    found = str(bundled) if bundled.exists() else shutil.which("claude")
    if found is None or sandbox.abi() < sandbox.LEAST_ABI:
        return None, {}
    own = build_env({}, os.environ, workspace)
    return sandbox.launch(Path(found), [workspace, Path(own["HOME"]), Path(own["TMPDIR"])])


def _tokens(message: ResultMessage) -> dict[str, int]:
    """The running totals of all models, by the names of ``Usage``."""
    names = {
        "input_tokens": "inputTokens",
        "output_tokens": "outputTokens",
        "cache_read_tokens": "cacheReadInputTokens",
        "cache_creation_tokens": "cacheCreationInputTokens",
    }
    models: list[Any] = list((message.model_usage or {}).values())
    return {ours: sum(int(model.get(theirs) or 0) for model in models) for ours, theirs in names.items()}


def _failed(category: Category, message: str) -> RunnerResult:
    return RunnerResult(outcome=Outcome.FAILED, category=category, message=one_line(message))
