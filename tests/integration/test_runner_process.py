"""The runner as the pod runs it: a process of its own, the real SDK and CLI, a scripted model on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.categories import POLICIES, Category
from claudejobs.api.events import (
    MAX_TERMINATION_BYTES,
    ApiRetry,
    Event,
    Notice,
    Outcome,
    Progress,
    Result,
    RunnerResult,
    Session,
    Started,
    Text,
    ToolResult,
    ToolUse,
    parse_event,
    parse_result,
)

REPOSITORY = Path(__file__).parents[2]
PATIENCE_SECONDS = 60
"""Longest wait for the next event; none of these runs is silent for that long."""
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of a scripted model."""
    program = REPOSITORY / "images/scripted-model/scripted_model.py"
    command = [sys.executable, str(program), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()


class Run:
    """One run of the runner: its events as they come, and its end."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.events: list[Event] = []
        self.code = -1

    async def until(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event that is wanted."""
        assert self.process.stdout is not None
        while line := await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_SECONDS):
            event = parse_event(line)
            assert event is not None, f"not an event on stdout: {line!r}"
            self.events.append(event)
            assert event.seq == len(self.events)
            if wanted(event):
                return event
        raise AssertionError(f"the runner ended without it: {self.events}")

    async def end(self) -> RunnerResult:
        """The result, after checking all that holds for every run."""
        last = await self.until(lambda event: isinstance(event, Result))
        assert isinstance(last, Result)
        assert self.process.stdout is not None
        assert await self.process.stdout.read() == b"", "something came after the result"
        self.code = await self.process.wait()
        assert isinstance(self.events[0], Started)
        category = last.result.category
        assert self.code == (0 if category is None else POLICIES[category].exit_code)
        message = (self.folder / "termination-log").read_bytes()
        assert len(message) <= MAX_TERMINATION_BYTES
        kept = parse_result(message.decode())
        assert kept is not None
        assert (kept.outcome, kept.category) == (last.result.outcome, category)
        assert left_behind(self.folder) == []
        return last.result

    def of_type(self, kind: type[Any]) -> list[Any]:
        """The events of one type."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def termination(self) -> RunnerResult:
        """What the kubelet would keep."""
        result = parse_result((self.folder / "termination-log").read_text())
        assert result is not None
        return result


def left_behind(folder: Path) -> list[int]:
    """The living processes whose working directory is in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
    return found


async def made(path: Path) -> None:
    """Wait until the file exists: the tool is running."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


Start = Callable[..., Awaitable[Run]]


@pytest.fixture
async def start(model: str, tmp_path: Path) -> Any:
    """Starts runners in a workspace of their own; ``raw`` gives the whole input document."""
    started: list[Run] = []

    async def _start(
        prompt: str = "", raw: str | None = None, program: tuple[str, ...] = ("-m", "claudejobs.runner"), **fields: Any
    ) -> Run:
        folder = tmp_path
        (folder / "workspace").mkdir(exist_ok=True)
        document = {
            "job": "jobs/test",
            "job_uid": "uid-1",
            "attempt": 1,
            "session_id": str(uuid.uuid4()),
            "prompt": prompt,
            "timeout_seconds": 60,
            **fields,
            "env": {"CLAUDE_CODE_MAX_RETRIES": "1", **fields.get("env", {})},
        }
        source = folder / "job.json"
        source.write_text(json.dumps(document) if raw is None else raw)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "ANTHROPIC_BASE_URL": model,
            "ANTHROPIC_API_KEY": "key-of-no-use",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDEJOBS_INPUT": str(source),
            "CLAUDEJOBS_WORKSPACE": str(folder / "workspace"),
            "CLAUDEJOBS_TERMINATION_LOG": str(folder / "termination-log"),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            limit=2**20,
        )
        run = Run(process, folder)
        started.append(run)
        return run

    yield _start
    for run in started:
        if run.process.returncode is None:
            run.process.kill()
            await run.process.wait()


def is_tool(event: Event) -> bool:
    return isinstance(event, ToolUse)


async def test_default_job_completes_with_progress(start: Start) -> None:
    run = await start("Please say hello.")
    result = await run.end()
    assert (result.outcome, result.category, run.code) == (Outcome.COMPLETED, None, 0)
    assert result.text is not None
    assert result.text.startswith("Done: hello.txt")
    assert (run.folder / "workspace/hello.txt").read_text() == "Hello from Claude Code on Kubernetes\n"
    assert result.num_turns == 4
    assert result.cost_usd > 0
    assert result.usage.input_tokens > 0
    told = [(event.percent, event.message) for event in run.of_type(Progress)]
    # Two updates of one turn run side by side, so one more event may come in between.
    assert (told[0], told[-1]) == ((0, "Writing hello.txt"), (50, "Checking hello.txt"))
    assert told == sorted(told, key=lambda progress: progress[0])
    assert [s.resumed for s in run.of_type(Session)] == [False]


# Prompt, category, options, and what the message must hold.
ENDINGS: list[tuple[str, Category | None, dict[str, Any], str]] = [
    ("script: 401", Category.AUTH, {}, "401"),
    ("script: 403", Category.AUTH, {}, ""),
    ("script: 400", Category.INVALID_REQUEST, {}, "scripted bad request"),
    ("script: 404", Category.INVALID_REQUEST, {}, ""),
    ("script: 413", Category.INVALID_REQUEST, {}, "too large"),
    ("script: credit", Category.BILLING, {}, "Credit balance"),
    ("script: toolong", Category.CONTEXT_OVERFLOW, {}, "too long"),
    ("script: 429 600", Category.RATE_LIMITED, {}, "429"),
    ("script: 529", Category.OVERLOADED, {}, ""),
    ("script: refusal", Category.MODEL_ERROR, {}, ""),
    ("script: maxtokens", Category.MODEL_ERROR, {}, ""),
    ("script: loop", Category.MAX_TURNS, {"claude": {"max_turns": 2}}, "turns"),
    ("script: budget", Category.BUDGET_EXCEEDED, {"claude": {"max_budget_usd": 1.0}}, "budget"),
    ("script: text 20", Category.OUTPUT_INVALID, {"claude": {"output_schema": SCHEMA}}, "outputSchema"),
    ("script: structured", None, {"claude": {"output_schema": SCHEMA}}, "completed"),
    ("script: flaky529 1", None, {}, "completed"),
    ("script: truncated", None, {}, "completed"),
    ("script: hello", Category.NETWORK, {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}}, ""),
]


@pytest.mark.parametrize(
    ("prompt", "category", "fields", "said"),
    ENDINGS,
    ids=[f"{e[0][8:]}-{e[1] or 'completed'}" for e in ENDINGS],
)
async def test_ending(start: Start, prompt: str, category: Category | None, fields: dict[str, Any], said: str) -> None:
    run = await start(prompt, **fields)
    result = await run.end()
    assert result.category == category, result
    assert said in result.message
    assert result.outcome is (Outcome.COMPLETED if category is None else Outcome.FAILED)
    if prompt == "script: structured":
        assert result.structured_output == {"answer": 42}
    if prompt == "script: 401":
        assert len(run.of_type(ApiRetry)) == 1, "the CLI was let to try wrong credentials again"


async def test_short_retry_after_is_recorded(start: Start) -> None:
    run = await start("script: 429 2")
    result = await run.end()
    assert result.category is Category.RATE_LIMITED
    assert result.retry_after_seconds == pytest.approx(2, abs=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_during_a_tool_cancels_and_leaves_nobody(start: Start, number: signal.Signals) -> None:
    run = await start("script: slow 300")
    await run.until(is_tool)
    begun = time.monotonic()
    run.process.send_signal(number)
    run.process.send_signal(number)  # an impatient second one changes nothing
    result = await run.end()
    assert time.monotonic() - begun < 8
    assert (result.outcome, result.category) == (Outcome.CANCELLED, Category.CANCELLED)


@pytest.mark.parametrize("prompt", ["script: stream 60", "script: hang"])
async def test_sigterm_while_the_model_answers(start: Start, prompt: str) -> None:
    run = await start(prompt)
    await run.until(lambda event: isinstance(event, Session))
    run.process.terminate()
    assert (await run.end()).outcome is Outcome.CANCELLED


async def test_sigterm_before_the_agent_is_connected(start: Start) -> None:
    run = await start("script: slow 300")
    await run.until(lambda event: isinstance(event, Started))
    run.process.terminate()
    assert (await run.end()).outcome is Outcome.CANCELLED
    assert run.of_type(ToolUse) == []


# How an agent is stopped: interrupt, SIGTERM, SIGKILL.

STUBBORN = (str(REPOSITORY / "tests/integration/stubborn_agent.py"),)
SIGTERM_NOTICE = "it gets SIGTERM"
SIGKILL_NOTICE = "live on after SIGTERM; they are killed"


def steps_of(run: Run) -> list[str]:
    """The steps that were needed after the interrupt."""
    said = " ".join(event.text for event in run.of_type(Notice))
    return [step for step in (SIGTERM_NOTICE, SIGKILL_NOTICE) if step in said]


async def test_agent_that_heeds_the_interrupt_gives_its_result(start: Start) -> None:
    session = str(uuid.uuid4())
    run = await start("script: steps 1\nscript: slow 300", session_id=session)
    await made(run.folder / "workspace/begun.txt")
    run.process.terminate()
    result = await run.end()
    assert (result.category, steps_of(run)) == (Category.CANCELLED, [])
    assert (result.session_id, result.num_turns) == (session, 1)
    assert result.cost_usd > 0, "the interrupted turn's cost is lost"


async def test_agent_that_ignores_the_interrupt_gets_sigterm_and_its_last_words_are_kept(start: Start) -> None:
    run = await start("ignore the interrupt", program=STUBBORN, grace_seconds=120, interrupt_seconds=0.5)
    await run.until(lambda event: isinstance(event, Text))
    run.process.terminate()
    result = await run.end()
    assert (result.category, steps_of(run)) == (Category.CANCELLED, [SIGTERM_NOTICE])
    assert [event.text for event in run.of_type(Text)] == ["at work", "what interrupt?", "last words"]


async def test_agent_that_ignores_sigterm_is_killed_before_the_kubelet_would(start: Start) -> None:
    run = await start("ignore SIGTERM", program=STUBBORN, grace_seconds=5, interrupt_seconds=0.5)
    await run.until(lambda event: isinstance(event, Text))
    run.process.terminate()
    result = await run.end()
    assert (result.category, steps_of(run)) == (Category.CANCELLED, [SIGTERM_NOTICE, SIGKILL_NOTICE])
    assert [event.text for event in run.of_type(Text)] == ["at work", "what interrupt?"]


async def test_grandchild_that_ignores_everything_is_killed(start: Start) -> None:
    command = "(trap '' TERM INT HUP; touch deaf.txt; while :; do sleep 1; done) & sleep 300"
    run = await start(f"script: tool {command}", grace_seconds=4, interrupt_seconds=1)
    await made(run.folder / "workspace/deaf.txt")
    run.process.terminate()
    assert (await run.end()).category is Category.CANCELLED


@pytest.mark.parametrize(
    ("fields", "category"),
    [({"timeout_seconds": 3}, Category.TIMEOUT), ({"stall_timeout_seconds": 2}, Category.STALLED)],
    ids=["timeout", "stall"],
)
async def test_clocks_of_the_runner_go_down_the_same_ladder(
    start: Start, fields: dict[str, Any], category: Category
) -> None:
    run = await start("ignore SIGTERM", program=STUBBORN, grace_seconds=2, interrupt_seconds=0.5, **fields)
    result = await run.end()
    assert (result.category, steps_of(run)) == (category, [SIGTERM_NOTICE, SIGKILL_NOTICE])


async def test_timeout_ends_a_tool_that_the_stall_timer_spares(start: Start) -> None:
    # The model's own silence before the tool must not be a stall on a machine with much to do.
    run = await start("script: slow 300", timeout_seconds=15, stall_timeout_seconds=5)
    assert (await run.end()).category is Category.TIMEOUT


@pytest.mark.parametrize("prompt", ["script: hang", "script: pings"])
async def test_silence_of_the_model_is_a_stall(start: Start, prompt: str) -> None:
    run = await start(prompt, stall_timeout_seconds=1)
    assert (await run.end()).category is Category.STALLED


async def test_answer_that_trickles_is_no_stall(start: Start) -> None:
    run = await start("script: stream 8", stall_timeout_seconds=5)
    assert (await run.end()).outcome is Outcome.COMPLETED


async def test_killed_agent_is_resumed_with_its_history(start: Start) -> None:
    session = str(uuid.uuid4())
    run = await start("Remember the heron.\nscript: slow 300", session_id=session)
    await made(run.folder / "workspace/begun.txt")
    (cli,) = children(run.process.pid)
    os.kill(cli, signal.SIGKILL)
    result = await run.end()
    # The model's second turn is only reached with the first one in the history.
    assert (result.outcome, result.text) == (Outcome.COMPLETED, "Done after 300 s.")
    assert result.restarts == 1
    assert [s.resumed for s in run.of_type(Session)] == [False, True]
    assert any("SIGKILL" in notice.text for notice in run.of_type(Notice))

    # Another job in the same session: the whole history, its own prompt, its own cost.
    second = await start("script: echo", session_id=session, job_uid="uid-2")
    other = await second.end()
    assert other.text is not None
    said = json.loads(other.text)["user"]
    assert said[0].startswith("Remember the heron.")
    assert "script: echo" in said
    assert 0 < other.usage.input_tokens < 1.5 * result.usage.input_tokens
    assert [s.resumed for s in second.of_type(Session)] == [True]


async def test_agent_that_keeps_crashing_ends_as_sdk_crash(start: Start) -> None:
    run = await start("script: tool kill -9 $PPID", max_restarts=0)
    result = await run.end()
    assert (result.category, result.restarts) == (Category.SDK_CRASH, 0)


async def test_next_attempt_goes_on_and_spends_only_what_is_left(start: Start) -> None:
    session, claude = str(uuid.uuid4()), {"max_budget_usd": 1.0}
    first = await start("script: budget", session_id=session, claude=claude)
    spent = await first.end()
    assert spent.category is Category.BUDGET_EXCEEDED
    second = await start("script: budget", session_id=session, claude=claude, attempt=2)
    again = await second.end()
    assert (again.category, again.num_turns, again.cost_usd) == (Category.BUDGET_EXCEEDED, 0, 0)


async def test_daemon_of_a_tool_does_not_outlive_the_runner(start: Start) -> None:
    run = await start("script: tool setsid -f sleep 300; echo started")
    assert (await run.end()).outcome is Outcome.COMPLETED


async def test_ten_megabytes_of_tool_output(start: Start) -> None:
    run = await start("script: tool head -c 10000000 /dev/zero | tr '\\0' x")
    assert (await run.end()).outcome is Outcome.COMPLETED
    assert [len(event.summary) <= 2000 for event in run.of_type(ToolResult)] == [True]


async def test_large_answer_is_cut_in_the_termination_message_only_as_needed(start: Start) -> None:
    run = await start("script: text 20000")
    result = await run.end()
    assert result.text is not None
    assert len(result.text) == 20000
    assert not result.truncated
    (said,) = run.of_type(Text)
    assert said.text == result.text
    kept = run.termination
    assert kept.truncated
    assert kept.text is not None
    assert len(kept.text) > 2500
    assert result.text.startswith(kept.text[:-1])


async def test_background_agent_is_waited_for(start: Start) -> None:
    run = await start("script: background", env={"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "0"})
    assert (await run.end()).outcome is Outcome.COMPLETED
    assert (run.folder / "workspace/delegated.txt").read_text() == "delegated\n"


BAD_INPUTS: list[tuple[dict[str, Any], Category, str]] = [
    ({"raw": "{"}, Category.INVALID_REQUEST, "not valid"),
    ({"raw": "{}"}, Category.INVALID_REQUEST, "session_id: Field required"),
    ({"session_id": "mine"}, Category.INVALID_REQUEST, "must be a UUID"),
    ({"claude": {"effort": "huge"}}, Category.INVALID_REQUEST, "spec.claude.effort is 'huge'"),
    ({"working_directory": "../.."}, Category.WORKSPACE, "outside of the workspace"),
]


@pytest.mark.parametrize(("fields", "category", "said"), BAD_INPUTS)
async def test_bad_input_is_a_clear_result(start: Start, fields: dict[str, Any], category: Category, said: str) -> None:
    result = await (await start("hello", **fields)).end()
    assert result.category is category
    assert said in result.message


async def test_missing_input_is_a_clear_result(start: Start, tmp_path: Path) -> None:
    run = await start(raw="")
    # The runner takes a third of a second to import the SDK before it looks for the file.
    (tmp_path / "job.json").unlink()
    result = await run.end()
    assert result.category is Category.INTERNAL
    assert "cannot read the job's input" in result.message


async def test_an_empty_input_is_waited_for(start: Start, tmp_path: Path) -> None:
    filled = await start("Please say hello.")
    document = (tmp_path / "job.json").read_text()
    assert (await filled.end()).outcome is Outcome.COMPLETED

    run = await start(raw="")
    await listens_for_sigterm(run)
    assert run.process.returncode is None
    (tmp_path / "filling").write_text(document.replace(json.loads(document)["session_id"], str(uuid.uuid4())))
    (tmp_path / "filling").replace(tmp_path / "job.json")
    assert (await run.end()).outcome is Outcome.COMPLETED


async def test_a_runner_that_waits_for_a_job_goes_when_it_is_asked_and_says_nothing(start: Start) -> None:
    run = await start(raw="")
    await listens_for_sigterm(run)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.stdout is not None
    assert await asyncio.wait_for(run.process.stdout.read(), PATIENCE_SECONDS) == b""
    assert await run.process.wait() == 0


async def listens_for_sigterm(run: Run) -> None:
    """Wait until the runner has a handler of its own."""
    status = Path(f"/proc/{run.process.pid}/status")
    while True:
        text = await asyncio.to_thread(status.read_text)
        caught = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        await asyncio.sleep(0.01)
