"""From the job's input to the SDK's options. Pure."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from claude_agent_sdk import AgentDefinition, ClaudeAgentOptions, EffortLevel, PermissionMode, SettingSource
from claude_agent_sdk.types import SystemPromptPreset

from claudejobs.api.events import TOKEN_FILE_VARIABLE, ClaudeOptions, RunnerInput

MAX_BUFFER_BYTES = 32 * 1024 * 1024
"""Longest line taken from the CLI. The SDK's 1 MiB ends the run over one large tool result."""

API_RETRIES = 5
"""How often the CLI repeats a failed API call: about 15 s in all. The operator repeats the attempt after
that, with a longer backoff and without a pod that waits."""


class OptionError(ValueError):
    """An option that the SDK cannot take; the text names the field, what came and what is allowed."""


@dataclass(frozen=True)
class Process:
    """What differs between the agent's processes of one attempt.

    Attributes:
        resume: go on with the session's transcript, else start the session.
        budget_usd: what may still be spent; the CLI counts each process anew.
    """

    resume: bool
    budget_usd: float | None


def build_options(
    job: RunnerInput,
    process: Process,
    *,
    directory: Path,
    config_dir: Path,
    environ: Mapping[str, str],
    stderr: Callable[[str], None],
    launch: tuple[Path | None, Mapping[str, str]] = (None, {}),
) -> ClaudeAgentOptions:
    """The options of one process of the agent; ``launch`` is what `sandbox.launch` says.

    Raises:
        OptionError: when a value of ``job.claude`` or ``job.session_id`` is not one that the SDK knows.
    """
    claude = job.claude
    session_id = _session_id(job.session_id)
    sources = [_one_of("settingSources", source, SettingSource) for source in claude.setting_sources]
    return ClaudeAgentOptions(
        cwd=directory,
        model=claude.model,
        fallback_model=claude.fallback_model,
        system_prompt=_system_prompt(claude),
        permission_mode=cast(PermissionMode, _one_of("permissionMode", claude.permission_mode, PermissionMode)),
        allowed_tools=claude.allowed_tools,
        disallowed_tools=claude.disallowed_tools,
        max_turns=claude.max_turns,
        max_budget_usd=process.budget_usd,
        effort=cast("EffortLevel | None", claude.effort and _one_of("effort", claude.effort, EffortLevel)),
        max_thinking_tokens=claude.max_thinking_tokens,
        mcp_servers=claude.mcp_servers,
        # A repository's own .mcp.json starts programs: only where its settings are wanted at all.
        strict_mcp_config="project" not in sources,
        output_format=_output_format(claude),
        agents=_agents(claude.agents) or None,
        betas=cast(list[Any], claude.betas),
        # None would load every source, and a repository's hooks with them.
        setting_sources=cast(list[SettingSource], sources),
        # A prompt is data: no @path expansion, no slash commands.
        verbatim_prompts=True,
        # Signs of life while a long answer is written; only cost where there is no stall timeout.
        include_partial_messages=job.stall_timeout_seconds is not None,
        max_buffer_size=MAX_BUFFER_BYTES,
        resume=session_id if process.resume else None,
        session_id=None if process.resume else session_id,
        cli_path=launch[0],
        env=build_env(job.env, environ, config_dir) | dict(launch[1]),
        settings=_settings(environ),
        stderr=stderr,
    )


def _settings(environ: Mapping[str, str]) -> str | None:
    """The gateway's token is read from its file by the CLI, now and then anew: the kubelet may renew it, and no tool
    finds it in its environment."""
    path = environ.get(TOKEN_FILE_VARIABLE)
    return json.dumps({"apiKeyHelper": f"cat {shlex.quote(path)}"}) if path else None


def build_env(job_env: Mapping[str, str], environ: Mapping[str, str], config_dir: Path) -> dict[str, str]:
    """What is set for the CLI on top of the container's: defaults, then the job's, then the reserved."""
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the pod's own volume
    home = environ.get("HOME") or "/"
    defaults = {
        "CLAUDE_CODE_MAX_RETRIES": str(API_RETRIES),
        # An agent in the background gives several results, and work that goes on after the answer.
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        # Tools are described up front unless there are very many, so that the task list is used.
        "ENABLE_TOOL_SEARCH": "auto",
        # How often the token's file is read. The kubelet renews a token minutes before its end at the least.
        "CLAUDE_CODE_API_KEY_HELPER_TTL_MS": "60000",
    }
    reserved = {
        # All of the agent's state is on the workspace volume: what makes a session resumable.
        "CLAUDE_CONFIG_DIR": str(config_dir),
        # A user without a passwd entry has HOME=/, which is read-only.
        "HOME": "/home/agent" if home == "/" else home,
        # Both are needed where the root filesystem is read-only.
        "TMPDIR": temporary,
        "CLAUDE_CODE_TMPDIR": temporary,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        # The task list drives the progress events; it is off by default outside a terminal.
        "CLAUDE_CODE_ENABLE_TODO_TOOLS": "1",
        # The pod is the sandbox. Without this the CLI refuses bypassPermissions when it runs as root.
        "IS_SANDBOX": "1",
    }
    return {key: value for key, value in defaults.items() if key not in environ} | dict(job_env) | reserved


def _session_id(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise OptionError(f"sessionId is {value!r}, but must be a UUID, as the CLI takes nothing else") from None


def _one_of(field: str, value: str, allowed: Any) -> str:
    names = get_args(allowed)
    if value not in names:
        raise OptionError(f"spec.claude.{field} is {value!r}, but must be one of: {', '.join(names)}")
    return value


def _system_prompt(claude: ClaudeOptions) -> str | SystemPromptPreset:
    """Claude Code's own prompt unless the job brings one; what is appended follows either."""
    if claude.system_prompt is not None:
        return "\n\n".join(part for part in (claude.system_prompt, claude.append_system_prompt) if part)
    preset = SystemPromptPreset(type="preset", preset="claude_code")
    if claude.append_system_prompt:
        preset["append"] = claude.append_system_prompt
    return preset


def _output_format(claude: ClaudeOptions) -> dict[str, Any] | None:
    return None if claude.output_schema is None else {"type": "json_schema", "schema": claude.output_schema}


def _agents(agents: Mapping[str, Any]) -> dict[str, AgentDefinition]:
    known = sorted(field.name for field in fields(AgentDefinition))
    definitions = {}
    for name, value in agents.items():
        where = f"spec.claude.agents.{name}"
        if not isinstance(value, Mapping):
            raise OptionError(f"{where} is {type(value).__name__}, but must be an object with: {', '.join(known)}")
        if unknown := sorted(set(value) - set(known)):
            raise OptionError(f"{where} has unknown fields {', '.join(unknown)}; allowed are: {', '.join(known)}")
        if missing := [field for field in ("description", "prompt") if not value.get(field)]:
            raise OptionError(f"{where} lacks {' and '.join(missing)}, which every agent needs")
        definitions[name] = AgentDefinition(**value)
    return definitions
