"""From the input to the SDK's options, the workspace's borders, and progress."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions

from claudejobs.api.events import RunnerInput
from claudejobs.runner.options import OptionError, Process, build_env, build_options
from claudejobs.runner.progress import TaskList
from claudejobs.runner.relay import summary_of, text_of
from claudejobs.runner.workspace import Memory, StateDir, WorkspaceError, prepare_directory

SESSION = str(uuid.UUID(int=7))


def options(process: Process | None = None, environ: dict[str, str] | None = None, **claude: Any) -> ClaudeAgentOptions:
    fields = {"job": "n/j", "job_uid": "u", "attempt": 1, "session_id": SESSION, "prompt": "p"}
    stall = {"stall_timeout_seconds": claude.pop("stall")} if "stall" in claude else {}
    return build_options(
        RunnerInput.model_validate(fields | stall | {"claude": claude}),
        process or Process(resume=False, budget_usd=None),
        directory=Path("/workspace"),
        config_dir=Path("/workspace/.claude-job/config"),
        environ=environ or {},
        stderr=lambda _: None,
    )


def test_defaults_are_safe() -> None:
    built = options()
    assert built.setting_sources == []
    assert built.strict_mcp_config
    assert built.verbatim_prompts
    assert built.permission_mode == "bypassPermissions"
    assert built.system_prompt == {"type": "preset", "preset": "claude_code"}
    assert (built.session_id, built.resume) == (SESSION, None)
    assert built.output_format is None
    assert not built.include_partial_messages


def test_the_gateways_token_is_read_from_its_file() -> None:
    assert options().settings is None
    built = options(environ={"CLAUDEJOBS_TOKEN_FILE": "/var/run/a b/token"})
    assert built.settings == '{"apiKeyHelper": "cat \'/var/run/a b/token\'"}'


def test_resume_and_remaining_budget() -> None:
    built = options(Process(resume=True, budget_usd=0.25), max_budget_usd=1.0)
    assert (built.session_id, built.resume, built.max_budget_usd) == (None, SESSION, 0.25)


def test_values_are_passed_on() -> None:
    built = options(
        stall=5,
        model="m",
        fallback_model="f",
        append_system_prompt="more",
        effort="high",
        max_turns=3,
        output_schema={"type": "object"},
        agents={"reviewer": {"description": "d", "prompt": "p", "tools": ["Read"]}},
        setting_sources=["project"],
    )
    assert (built.model, built.fallback_model, built.effort, built.max_turns) == ("m", "f", "high", 3)
    assert built.system_prompt == {"type": "preset", "preset": "claude_code", "append": "more"}
    assert built.output_format == {"type": "json_schema", "schema": {"type": "object"}}
    assert built.agents is not None
    assert built.agents["reviewer"].tools == ["Read"]
    assert not built.strict_mcp_config
    assert built.include_partial_messages, "a long answer must show signs of life"


def test_own_system_prompt_replaces_claude_codes() -> None:
    assert options(system_prompt="mine", append_system_prompt="more").system_prompt == "mine\n\nmore"


@pytest.mark.parametrize(
    ("claude", "said"),
    [
        ({"permission_mode": "yolo"}, "spec.claude.permissionMode is 'yolo', but must be one of: default"),
        ({"effort": "huge"}, "spec.claude.effort is 'huge'"),
        ({"setting_sources": ["all"]}, "spec.claude.settingSources is 'all'"),
        ({"agents": {"a": "x"}}, "spec.claude.agents.a is str"),
        ({"agents": {"a": {"description": "d"}}}, "spec.claude.agents.a lacks prompt"),
        ({"agents": {"a": {"description": "d", "prompt": "p", "color": 1}}}, "unknown fields color"),
    ],
)
def test_bad_option_names_field_value_and_allowed(claude: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        options(**claude)


def test_environment_is_layered() -> None:
    job = {"CLAUDE_CODE_MAX_RETRIES": "1", "CLAUDE_CONFIG_DIR": "/elsewhere", "MINE": "x"}
    env = build_env(job, {"ENABLE_TOOL_SEARCH": "true", "HOME": "/"}, Path("/config"))
    assert env["MINE"] == "x"
    assert env["CLAUDE_CODE_MAX_RETRIES"] == "1", "the job may change a default"
    assert env["CLAUDE_CONFIG_DIR"] == "/config", "but not what the runner relies on"
    assert "ENABLE_TOOL_SEARCH" not in env, "nor is the container's value hidden by a default"
    assert env["HOME"] == "/home/agent"
    assert env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"


def test_working_directory_is_made(tmp_path: Path) -> None:
    assert prepare_directory(tmp_path, "a/b") == tmp_path.resolve() / "a/b"
    assert (tmp_path / "a/b").is_dir()


@pytest.mark.parametrize("relative", ["..", "a/../../b", "/etc", "link/inside", "bad\0name", "file/below"])
def test_working_directory_does_not_leave_the_workspace(tmp_path: Path, relative: str) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (tmp_path / "outside").mkdir()
    (workspace / "link").symlink_to(tmp_path / "outside")
    (workspace / "file").touch()
    with pytest.raises(WorkspaceError):
        prepare_directory(workspace, relative)
    assert list((tmp_path / "outside").iterdir()) == []


def test_missing_workspace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot make the working directory"):
        prepare_directory(tmp_path / "none", ".")


def test_memory_survives_and_a_broken_one_is_empty(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    memory = Memory()
    memory.job("u").spent_usd = 1.5
    state.save(memory)
    assert state.load().job("u").spent_usd == 1.5
    (tmp_path / "state/runner.json").write_text("{")
    assert state.load() == Memory()


def test_transcript_is_found_in_any_project(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert not state.has_transcript(SESSION)
    (state.config_dir / "projects/-w").mkdir(parents=True)
    (state.config_dir / f"projects/-w/{SESSION}.jsonl").touch()
    assert state.has_transcript(SESSION)


def update(tasks: TaskList, tool: str, tool_input: dict[str, Any], result: Any = None) -> bool:
    tasks.called("c", tool, tool_input)
    return tasks.ended("c", False, result)


def test_progress_is_the_share_of_completed_tasks_and_never_falls() -> None:
    tasks = TaskList()
    for number in "12":
        made = {"task": {"id": number}}
        update(tasks, "TaskCreate", {"subject": f"s{number}", "activeForm": f"doing {number}"}, made)
    assert update(tasks, "TaskUpdate", {"taskId": "1", "status": "in_progress"})
    assert (tasks.percent, tasks.message) == (0, "doing 1")
    assert update(tasks, "TaskUpdate", {"taskId": "1", "status": "completed"})
    assert tasks.percent == 50
    assert not update(tasks, "TaskCreate", {"subject": "s3"}, {"task": {"id": "3"}})
    assert tasks.percent == 50


def test_progress_reads_todo_lists_and_ignores_failed_calls() -> None:
    tasks = TaskList()
    todos = [{"content": "a", "status": "completed"}, {"content": "b", "status": "in_progress"}]
    assert update(tasks, "TodoWrite", {"todos": todos})
    assert (tasks.percent, tasks.message) == (50, "b")
    tasks.called("x", "TodoWrite", {"todos": []})
    assert not tasks.ended("x", True, None)
    assert not tasks.ended("unknown", False, None)


def test_tool_calls_in_short() -> None:
    assert summary_of({"description": "d", "command": "ls"}) == "ls"
    assert summary_of({"n": 1}) == '{"n": 1}'
    assert len(summary_of({"command": "x" * 999})) == 300
    assert text_of([{"type": "text", "text": "a"}, {"type": "image"}]) == "a\n[image]"
