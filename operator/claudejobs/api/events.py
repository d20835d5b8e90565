"""What passes between the operator and the runner in a job's pod.

In: one ``RunnerInput`` document, a file in the pod. Out: one JSON object per line on standard output (an
``Event``), numbered from 1 without gaps, and at the end a ``RunnerResult``, both as the last event and as the
container's termination message. Any line of the log that is not such an object is plain text and is kept as
a log line; it never breaks the reader.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .categories import Category

PROTOCOL_VERSION = 1

MAX_LINE_BYTES = 256 * 1024
"""Longest event line that the runner writes and that the operator parses; longer lines are log text, cut."""

MAX_TERMINATION_BYTES = 4096
"""The kubelet keeps this much of a termination message (its own limit, not ours)."""

INPUT_DIR = "/etc/claudejobs"
"""Folder in the pod where the job's input is mounted."""

INPUT_FILE = f"{INPUT_DIR}/job.json"

WORKSPACE_DIR = "/workspace"
"""Where the workspace volume is mounted; ``spec.workingDirectory`` is inside it."""

STATE_DIR = f"{WORKSPACE_DIR}/.claude-job"
"""Where the runner keeps the agent's configuration and session transcripts, on the workspace volume."""

CHECKOUT_NOTE = "checkout.txt"
"""File in ``STATE_DIR`` in which the checkout tells the runner what it did; the runner makes it a notice."""

GATEWAY_AUDIENCE = "claudejobs-gateway"
"""Audience of the tokens with which jobs' pods call the model gateway."""

TOKEN_DIR = "/var/run/claudejobs"  # noqa: S105 - a path
"""Folder in the runner's container where that token is mounted."""

TOKEN_FILE_VARIABLE = "CLAUDEJOBS_TOKEN_FILE"  # noqa: S105 - a name
"""Tells the runner the token's file; unset where the container has the model API's key itself."""

BUDGET_SPENT = "spec.claude.maxBudgetUSD is spent"
"""Part of the gateway's message, by which the runner tells this refusal from other bad requests."""

GIT_USERNAME_VARIABLE = "CLAUDEJOBS_GIT_USERNAME"
GIT_PASSWORD_VARIABLE = "CLAUDEJOBS_GIT_PASSWORD"  # noqa: S105 - a name
GIT_SSH_KEY_VARIABLE = "CLAUDEJOBS_GIT_SSH_KEY"
GIT_KNOWN_HOSTS_VARIABLE = "CLAUDEJOBS_GIT_KNOWN_HOSTS"


class _Wire(BaseModel):
    model_config = ConfigDict(populate_by_name=True, extra="ignore", frozen=True)


class Outcome(StrEnum):
    """How an attempt ended, as the runner saw it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Usage(_Wire):
    """Tokens that an attempt used, summed over models."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0


class ClaudeOptions(_Wire):
    """The agent's options, in the SDK's terms; ``None`` leaves the SDK's default.

    One default differs: without ``system_prompt`` the agent gets Claude Code's own, as the SDK's is empty.
    ``append_system_prompt`` follows either. ``max_budget_usd`` bounds the job: all attempts that share a
    workspace together.
    """

    model: str | None = None
    fallback_model: str | None = None
    system_prompt: str | None = None
    append_system_prompt: str | None = None
    permission_mode: str = "bypassPermissions"
    allowed_tools: list[str] = Field(default_factory=list)
    disallowed_tools: list[str] = Field(default_factory=list)
    max_turns: int | None = None
    max_budget_usd: float | None = None
    effort: str | None = None
    max_thinking_tokens: int | None = None
    mcp_servers: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] | None = None
    agents: dict[str, Any] = Field(default_factory=dict)
    betas: list[str] = Field(default_factory=list)
    setting_sources: list[str] = Field(default_factory=list)


class GitSource(_Wire):
    """The repository that the checkout clones before the runner starts.

    Attributes:
        url: http, https, ssh or git; without credentials.
        ref: branch, tag or commit; ``None`` is the remote's HEAD.
        timeout_seconds: the checkout gives up after this long.
    """

    url: str
    ref: str | None = None
    timeout_seconds: int = 600


class RunnerInput(_Wire):
    """All that the runner needs to know about its job.

    Attributes:
        job: ``namespace/name`` of the resource, for messages only.
        job_uid: the resource's UID; with ``attempt`` it names this run.
        attempt: numbered from 1.
        session_id: the session to use: resumed when its transcript exists in ``STATE_DIR``, else started.
        working_directory: relative to ``WORKSPACE_DIR``; made when missing.
        timeout_seconds: the runner interrupts the agent after this long and reports ``timeout``.
        stall_timeout_seconds: no message from the SDK for this long is reported as ``stalled``.
        grace_seconds: from the wish to stop the agent until the kubelet may kill the container.
        interrupt_seconds: the part of it that an interrupted agent has to end by itself, before SIGTERM.
        env: variables for the agent's process, on top of the container's.
        git: what the checkout clones into the working directory; the runner itself does not read it.
        max_restarts: how often a crashed CLI is restarted and resumed inside this pod.
    """

    version: Literal[1] = 1
    job: str
    job_uid: str
    attempt: int
    session_id: str
    prompt: str
    working_directory: str = "."
    timeout_seconds: int = 3600
    stall_timeout_seconds: int | None = None
    grace_seconds: float = 15
    interrupt_seconds: float = 5
    env: dict[str, str] = Field(default_factory=dict)
    claude: ClaudeOptions = Field(default_factory=ClaudeOptions)
    git: GitSource | None = None
    max_restarts: int = 2


class RunnerResult(_Wire):
    """How the attempt ended. Fits the termination message: ``text`` and the like are cut when they must be.

    Attributes:
        category: set unless ``outcome`` is completed.
        message: one line for people; why it ended.
        text: the final answer, of an attempt that has one.
        cost_usd: of this attempt alone, as ``usage`` and ``num_turns`` are. What a CLI that was killed had
            spent by then is not known, and not in it.
        retry_after_seconds: what the model API asked for, when it limited the rate and the CLI let it be
            known; it hides a Retry-After too long for its own retries.
        api_status: HTTP status of the model API's last error.
        resumed: the attempt went on with a session that it found on the workspace; ``None`` when the agent was not
            started.
        truncated: ``text`` or ``structured_output`` was cut or dropped to fit; the ``result`` event in the
            log has the whole.
    """

    version: Literal[1] = 1
    outcome: Outcome
    category: Category | None = None
    message: str = ""
    session_id: str | None = None
    text: str | None = None
    structured_output: Any = None
    num_turns: int = 0
    cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    usage: Usage = Field(default_factory=Usage)
    model: str | None = None
    api_status: int | None = None
    retry_after_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    restarts: int = 0
    resumed: bool | None = None
    truncated: bool = False


class _Event(_Wire):
    v: Literal[1] = 1
    seq: int = Field(ge=1)
    time: AwareDatetime


class Started(_Event):
    """The runner is up; nothing was asked of the model yet."""

    type: Literal["started"] = "started"
    attempt: int
    sdk_version: str


class Session(_Event):
    """The agent's session exists. Sent again when a crashed CLI was resumed."""

    type: Literal["session"] = "session"
    session_id: str
    model: str | None = None
    resumed: bool = False


class Text(_Event):
    """Text of the assistant, cut to what fits a line."""

    type: Literal["text"] = "text"
    text: str


class ToolUse(_Event):
    """The agent calls a tool; ``summary`` is a short form of its input."""

    type: Literal["tool_use"] = "tool_use"
    tool: str
    summary: str = ""


class ToolResult(_Event):
    """A tool ended; ``summary`` is the head of its output."""

    type: Literal["tool_result"] = "tool_result"
    is_error: bool = False
    summary: str = ""


class Progress(_Event):
    """The agent's own view of how far it is, from its task list; never goes down within an attempt."""

    type: Literal["progress"] = "progress"
    percent: int = Field(ge=0, le=100)
    message: str = ""


class ApiRetry(_Event):
    """The CLI is about to call the model API again after an error."""

    type: Literal["api_retry"] = "api_retry"
    attempt: int
    max_retries: int
    delay_seconds: float
    status: int | None = None


class Notice(_Event):
    """Something an operator at night wants to read: a restart, an interrupt, the CLI's stderr."""

    type: Literal["notice"] = "notice"
    level: Literal["info", "warning", "error"] = "info"
    text: str


class Result(_Event):
    """The last event: the whole result."""

    type: Literal["result"] = "result"
    result: RunnerResult


Event = Annotated[
    Started | Session | Text | ToolUse | ToolResult | Progress | ApiRetry | Notice | Result,
    Field(discriminator="type"),
]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event | None:
    """Read one line of a pod's log; ``None`` when it is not an event of this protocol version.

    Never raises: what a job prints is not ours to trust.
    """
    if len(line) > MAX_LINE_BYTES or line.lstrip()[:1] not in ("{", b"{"):
        return None
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None


def parse_result(message: str | None) -> RunnerResult | None:
    """Read a termination message; ``None`` when the runner did not write one that can be read."""
    if not message:
        return None
    try:
        return RunnerResult.model_validate_json(message)
    except ValidationError:
        return None
