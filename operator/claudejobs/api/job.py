"""The spec of a ClaudeCodeJob, in the words of a job's author. ``crds/`` is generated from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import MAX_JOB_NAME, Name, SpecModel, cel, validations
from .podtemplate import PodTemplate
from .workspace import Workspace

MAX_PROMPT = 131072
"""Characters. The prompt travels in the resource and in the pod's annotations, which Kubernetes bounds."""

JobName = Annotated[str, Field(min_length=1, max_length=MAX_JOB_NAME, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ToolName = Annotated[str, Field(min_length=1, max_length=512)]
JsonObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class StdioMcpServer(SpecModel):
    """An MCP server that runs in the job's pod."""

    command: str = Field(min_length=1, max_length=4096, description="Program; it must exist in the runner's image.")
    args: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list, max_length=64, description="Its arguments."
    )
    env: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] = Field(
        default_factory=dict, description="Its environment."
    )


class HttpMcpServer(SpecModel):
    """An MCP server that is reached over the network, as far as the pod's network policy allows."""

    type: Literal["http", "sse"] = Field("http", description="Transport.")
    url: str = Field(max_length=2048, pattern=r"^https?://", description="Address.")
    headers: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Headers of every request."
    )


class McpServer(SpecModel):
    """One MCP server: exactly one of its kinds is set."""

    stdio: StdioMcpServer | None = Field(None, description="Runs in the pod.")
    http: HttpMcpServer | None = Field(None, description="Reached over the network.")


class CredentialsSecretRef(SpecModel):
    """The model API's key: one key of a Secret in the job's namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Literal["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"] = Field(
        "ANTHROPIC_API_KEY",
        description="The Secret's key, which is also the variable that the agent reads. No other key of a Secret can "
        "be named, so that a job cannot read Secrets that were not made for jobs.",
    )


class Claude(SpecModel):
    """Options of the agent; each is the option of the Claude Agent SDK with the same meaning."""

    model: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*$",
        description="Model name or alias; default: the operator's, else the SDK's.",
    )
    fallback_model: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*$",
        description="Model to use while the first is overloaded.",
    )
    system_prompt: str | None = Field(
        None,
        max_length=65536,
        description="Replaces Claude Code's system prompt; excludes appendSystemPrompt.",
    )
    append_system_prompt: str | None = Field(
        None, max_length=65536, description="Text added to Claude Code's own system prompt."
    )
    permission_mode: Literal["default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"] = Field(
        "bypassPermissions",
        description="What tools may do without asking. Nobody can be asked in a job: with any mode but "
        "bypassPermissions, a tool that is not in allowedTools is denied and the agent goes on without it.",
    )
    allowed_tools: list[ToolName] = Field(
        default_factory=list,
        max_length=256,
        description="Tools allowed without asking, e.g. Read, Bash(git log:*).",
    )
    disallowed_tools: list[ToolName] = Field(
        default_factory=list, max_length=256, description="Tools that the agent must not use."
    )
    max_turns: int | None = Field(None, ge=1, le=10000, description="Most turns of the agent in one attempt.")
    max_budget_usd: float | None = Field(
        None,
        alias="maxBudgetUSD",
        gt=0,
        le=100000,
        description="Most money for the whole job, US dollars, over all attempts; checked between model calls.",
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much the model thinks."
    )
    max_thinking_tokens: int | None = Field(None, ge=0, le=1000000, description="Bound on thinking, tokens.")
    mcp_servers: Annotated[dict[str, McpServer], Field(max_length=32)] = Field(
        default_factory=dict,
        description="MCP servers by name.",
        json_schema_extra=validations(
            cel(
                "self.all(n, has(self[n].stdio) != has(self[n].http))",
                "each MCP server sets exactly one of stdio and http",
            )
        ),
    )
    output_schema: JsonObject | None = Field(
        None,
        description="JSON Schema that the result must satisfy; the object is in status.result.structuredOutput.",
    )
    setting_sources: list[Literal["user", "project", "local"]] = Field(
        default_factory=list,
        max_length=3,
        description="Which settings files in the workspace are loaded. Empty by default, because a repository's "
        "settings can run hooks.",
    )
    betas: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default_factory=list, max_length=16, description="Beta features of the API."
    )


_RESERVED_ENV = "^(CLAUDE|ANTHROPIC|AWS_|GOOGLE_|LD_|PYTHON|NODE_|BASH_|GIT_SSH)|^(HOME|PATH|TMPDIR|SHELL|IS_SANDBOX)$"


class EnvVar(SpecModel):
    """A variable in the environment of the agent and its tools."""

    name: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name.",
        json_schema_extra=validations(
            cel(
                f"!self.matches('{_RESERVED_ENV}')",
                "this name steers the runner itself and is reserved (CLAUDE*, ANTHROPIC*, AWS_*, GOOGLE_*, LD_*, "
                "PYTHON*, NODE_*, BASH_*, GIT_SSH*, HOME, PATH, TMPDIR, SHELL, IS_SANDBOX)",
            )
        ),
    )
    value: str = Field("", max_length=32768, description="Value; not secret, it is readable in the resource.")


class Backoff(SpecModel):
    """Time between attempts."""

    type: Literal["exponential", "fixed"] = Field(
        "exponential", description="exponential doubles the delay after each attempt."
    )
    delay_seconds: int = Field(10, ge=0, le=86400, description="Delay after the first attempt, seconds.")
    max_delay_seconds: int = Field(600, ge=0, le=86400, description="Longest delay, seconds.")


class Retry(SpecModel):
    """What happens after an attempt failed in a way that another attempt can mend."""

    max_attempts: int | None = Field(
        None,
        ge=1,
        le=20,
        description="Attempts in all, the first included; default: the operator's RETRY_ATTEMPTS.",
    )
    backoff: Backoff = Field(default_factory=Backoff, description="Time between attempts.")


INTERRUPT_RULE = cel(
    "!has(self.interruptSeconds) || self.interruptSeconds < self.terminationGracePeriodSeconds",
    "must be less than terminationGracePeriodSeconds, of which it is the first part",
    "interruptSeconds",
)
"""On the whole template, as it compares two fields."""

MAX_DEFAULT_INTERRUPT = 5.0
"""Seconds. An agent that takes the interrupt at all ends within fractions of one; the rest is for what it started."""


class JobTemplate(SpecModel):
    """How to run: what the jobs of one queue have in common, where they do not say otherwise."""

    claude: Claude = Field(default_factory=Claude, description="Options of the agent.")
    workspace: Workspace = Field(
        default_factory=Workspace,
        description="Where the agent works.",
        json_schema_extra=validations(
            cel(
                "[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.volumeClaimTemplate)]"
                ".filter(x, x).size() <= 1",
                "set at most one of emptyDir, persistentVolumeClaim and volumeClaimTemplate",
            )
        ),
    )
    credentials_secret_ref: CredentialsSecretRef | None = Field(
        None, description="The model API's key; default: the operator's CREDENTIALS_SECRET."
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=128,
        description="Environment of the agent and its tools.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    timeout_seconds: int | None = Field(
        None,
        ge=1,
        le=604800,
        description="Longest time of one attempt, seconds; default: the operator's JOB_TIMEOUT.",
    )
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=31536000,
        description="Longest time of the whole job, seconds, from its first attempt on, waiting times included.",
    )
    stall_timeout_seconds: int | None = Field(
        None,
        ge=5,
        le=86400,
        description="An attempt ends as stalled when the model shows no sign of life for this long, seconds; time "
        "inside a tool does not count.",
    )
    termination_grace_period_seconds: int = Field(
        15,
        ge=1,
        le=600,
        description="How long an agent that is stopped (cancelled, suspended, timed out, stalled) has in all, seconds. "
        "It is interrupted; after interruptSeconds it and what it started get SIGTERM; shortly before the end SIGKILL, "
        "so that the runner can still report. At the end the kubelet kills the container.",
    )
    interrupt_seconds: int | None = Field(
        None,
        ge=0,
        le=599,
        description="How much of that an interrupted agent has to end its turn by itself before SIGTERM, seconds; less "
        "than terminationGracePeriodSeconds. Default: a third of it, at most 5.",
    )
    retry: Retry = Field(default_factory=Retry, description="What happens after a failed attempt.")
    priority: int = Field(0, ge=-1000, le=1000, description="Among waiting jobs, higher starts first.")
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=31536000,
        description="The job is deleted this long after its end, seconds; default: never.",
    )
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate, description="Where the job's pods run and how large they are."
    )

    @model_validator(mode="after")
    def _interrupt_within_grace(self) -> Self:
        interrupt, grace = self.interrupt_seconds, self.termination_grace_period_seconds
        if interrupt is not None and interrupt >= grace:
            raise ValueError(
                f"interruptSeconds is {interrupt}, but must be less than terminationGracePeriodSeconds, "
                f"which is {grace}"
            )
        return self

    @property
    def interrupt(self) -> float:
        """Seconds that an interrupted agent has before SIGTERM; less than the grace period."""
        if self.interrupt_seconds is not None:
            return float(self.interrupt_seconds)
        return min(self.termination_grace_period_seconds / 3, MAX_DEFAULT_INTERRUPT)


class JobSpec(JobTemplate):
    """What to run. Immutable except suspend, cancel, rerun and ttlSecondsAfterFinished."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the agent is asked to do.")
    task_id: str | None = Field(None, min_length=1, max_length=253, description="The task manager's id of the task.")
    user_id: str | None = Field(None, min_length=1, max_length=253, description="Who asked for it.")
    arguments: JsonObject = Field(
        default_factory=dict,
        description="Carried through: the agent's environment has them as JSON in CLAUDE_JOB_ARGUMENTS.",
    )
    metadata: JsonObject = Field(
        default_factory=dict,
        description="Carried through to the ProcessState row; the operator does not read it.",
    )
    working_directory: str = Field(
        ".",
        min_length=1,
        max_length=1024,
        description="Where the agent starts, relative to the workspace; made when missing.",
        json_schema_extra=validations(
            cel(
                r"!self.startsWith('/') && !self.contains('\\') && !self.split('/').exists(p, p == '..')",
                "must be a relative path inside the workspace, without '..'",
            )
        ),
    )
    depends_on: list[JobName] = Field(
        default_factory=list,
        max_length=32,
        description="Jobs of the same namespace that must have completed before this one starts. It fails when one of "
        "them does, and waits for one that does not exist yet.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    suspend: bool = Field(False, description="True stops the job's pod, or keeps it from starting, until false again.")
    cancel: bool = Field(False, description="True ends the job as Cancelled, whatever it does; it cannot be undone.")
    rerun: int = Field(
        0,
        ge=0,
        le=1000,
        description="Raise it to run a job again that has failed: its attempts are counted anew, and its session is "
        "resumed where the workspace has kept it. `claudejobs retry NAME` does so.",
    )


MUTABLE_FIELDS = frozenset({"suspend", "cancel", "rerun", "ttl_seconds_after_finished"})
"""Fields of ``JobSpec`` that may change after the job was made."""
