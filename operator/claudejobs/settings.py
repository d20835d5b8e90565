"""The operator's settings, read from the environment once, at the start.

The names of the first seven are those of the task manager's worker, so that its deployment's environment can
stay as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from claudejobs.api.base import Quantity
from claudejobs.api.redis_url import RedisUrl

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod that has a service account's token finds its namespace."""


def _own_namespace() -> str | None:
    try:
        return OWN_NAMESPACE.read_text().strip() or None
    except OSError:
        return None


class SettingsError(Exception):
    """A setting is wrong. The message has a line for each: the variable, what came and what is allowed."""


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_comma_separated)]
"""A list of words in one variable."""

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]
"""Least level that is logged, in any case."""


class EnvironmentSettings(BaseSettings):
    """What is read from the environment once, at the start of a process."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: with one line per wrong variable.
        """
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("\n".join(cls._explain(dict(e)) for e in error.errors())) from None

    @classmethod
    def _explain(cls, error: dict[str, object]) -> str:
        """One error, in a line that names the variable."""
        path = error["loc"]
        field = str(path[0]) if isinstance(path, tuple) and path else ""
        if not field:
            return str(error["msg"]).removeprefix("Value error, ")
        prefix = cls.model_config.get("env_prefix", "")
        field = field.lower().removeprefix(prefix.lower())
        name = prefix + field.upper()
        secret = any(part in name for part in ("PASSWORD", "URL"))
        came = "" if secret else f" {error['input']!r} is not valid:"
        told = str(error["msg"]).removeprefix("Value error, ")
        return f"{name}:{came} {told}. {cls.model_fields[field].description}"


class Settings(EnvironmentSettings):
    """All settings. The environment variable is the field's name in upper case."""

    redis_host: str | None = Field(
        None, description="Host of the Redis that has the BullMQ queues; empty, with REDIS_URL: no queue is drained."
    )
    redis_port: int = Field(6379, ge=1, le=65535, description="Port of that Redis.")
    redis_password: SecretStr | None = Field(None, description="Password of that Redis.")
    max_concurrent_jobs: int = Field(
        100, ge=1, le=100000, description="Most jobs that have a pod at a time; the others wait in phase Queued."
    )
    max_jobs_per_namespace: int | None = Field(None, ge=1, description="The same for one namespace; empty: no limit.")
    max_jobs_per_user: int | None = Field(
        None, ge=1, description="The same for one spec.userId; jobs that name no user are not limited by it."
    )
    job_timeout: int = Field(
        3600, ge=1, le=604800, description="Seconds that an attempt may take when the job does not say."
    )
    retry_attempts: int = Field(3, ge=1, le=20, description="Attempts of a job that does not say; the first counts.")
    log_level: LogLevel = Field("INFO", description="Least level that is logged.")

    redis_url: SecretStr | None = Field(
        None,
        description="The same in one, instead of the three: redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// with "
        "TLS (?ssl_ca_certs=FILE for a CA of one's own), redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE or "
        "redis+cluster://HOST:PORT,HOST:PORT.",
    )
    database_url: SecretStr = Field(
        SecretStr("sqlite:////var/lib/claudejobs/state.db"),
        description="Where ProcessState rows go: postgresql://… or sqlite:////path.",
    )
    watch_namespaces: CommaSeparated = Field(
        default_factory=list, description="Namespaces whose jobs are run, comma-separated; empty means all."
    )
    runner_image: str = Field("localhost/claudejobs-runner:dev", min_length=1, description="Image of the jobs' pods.")
    runner_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Its pull policy."
    )
    credentials_secret: str = Field(
        "claude-credentials",
        min_length=1,
        description="Secret in a job's namespace with the model API's key, for jobs that name none.",
    )
    model_base_url: str | None = Field(
        None, pattern=r"^https?://", description="ANTHROPIC_BASE_URL of the jobs; empty means the public API."
    )
    model_gateway_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="The model gateway, which holds the model API's key: jobs get tokens of their own for it, and "
        "CREDENTIALS_SECRET, MODEL_BASE_URL and spec.credentialsSecretRef are not used. Empty: jobs hold the key.",
    )
    default_model: str | None = Field(None, description="Model of jobs that name none; empty means the SDK's.")
    default_cpu_request: Quantity = Field("250m", description="CPU request of a job's pod.")
    default_cpu_limit: Quantity = Field("2", description="CPU limit of a job's pod.")
    default_memory_request: Quantity = Field("512Mi", description="Memory request of a job's pod.")
    default_memory_limit: Quantity = Field("2Gi", description="Memory limit of a job's pod.")
    default_ephemeral_storage_request: Quantity = Field(
        "512Mi",
        description="Disk that a job's pod reserves. On a node that runs out of disk, the pods that use more than they "
        "reserved go first. The limit is the sum of the pod's volumes and its log.",
    )
    runtime_class_name: str | None = Field(
        None, description="RuntimeClass of all jobs' pods, e.g. gvisor; a job cannot choose another."
    )
    host_users: bool = Field(True, description="False gives each job's pod a user namespace of its own.")
    warm_pools: bool = Field(
        False,
        description="Whether ClaudeCodePools are kept, and jobs take their pods; needs the permission to patch pods.",
    )
    allowed_metadata_domains: CommaSeparated = Field(
        default_factory=list,
        description="Domains whose labels and annotations a job may put on its pods, comma-separated.",
    )
    allowed_priority_classes: CommaSeparated = Field(
        default_factory=list,
        description="PriorityClasses, and WorkloadPriorityClasses of Kueue, that a job may choose, comma-separated; "
        "empty: none. Pods of a high one drive others from their nodes, those of other namespaces too.",
    )
    start_timeout: int = Field(
        600, ge=5, le=86400, description="Seconds that a pod may need to start (schedule, pull, mount)."
    )
    max_disruptions: int = Field(
        10, ge=0, le=50, description="Endings by eviction, node loss or preemption that a job survives."
    )
    resync_seconds: int = Field(
        300, ge=5, le=86400, description="Seconds between two full listings, which mend whatever a watch missed."
    )
    progress_interval: int = Field(
        30, ge=1, le=3600, description="Least seconds between two status writes that only show progress."
    )
    workers: int = Field(16, ge=1, le=256, description="Jobs reconciled at the same time.")
    leader_election: bool = Field(
        False,
        description="Whether replicas elect the one that acts. Without it there must be one process; two do no harm, "
        "but do each other's work again.",
    )
    lease_namespace: str | None = Field(
        default_factory=_own_namespace,
        description="Namespace of the election's Lease; empty means that of the operator's pod.",
    )
    lease_name: str = Field(
        "claudejobs-operator",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        max_length=253,
        description="Its name; operators with the same Lease are replicas of one.",
    )
    lease_duration: int = Field(
        15,
        ge=3,
        le=300,
        description="Seconds after which a replica takes over from a leader of which nothing is heard.",
    )
    lease_renew_deadline: int = Field(
        10,
        ge=2,
        le=299,
        description="Seconds after which a leader that cannot renew the Lease stops acting. It must be less than "
        "LEASE_DURATION: writes that are under way have the difference to end.",
    )
    lease_retry: int = Field(
        2,
        ge=1,
        le=149,
        description="Seconds between two renewals, and between two looks of a replica that stands by; at most half of "
        "LEASE_RENEW_DEADLINE, so that one lost renewal loses nothing.",
    )
    health_port: int = Field(8080, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics; 0 chooses one.")

    @field_validator("redis_url")
    @classmethod
    def _usable_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            RedisUrl.parse(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgres://", "postgresql://", "sqlite:///")):
            raise ValueError("must start with postgresql:// or sqlite:///")
        return value

    @model_validator(mode="after")
    def _possible_election(self) -> Self:
        if self.lease_renew_deadline >= self.lease_duration:
            raise ValueError(
                f"LEASE_RENEW_DEADLINE: {self.lease_renew_deadline} is not less than LEASE_DURATION, "
                f"{self.lease_duration}: two leaders could act at once"
            )
        if self.lease_retry * 2 > self.lease_renew_deadline:
            raise ValueError(
                f"LEASE_RETRY: {self.lease_retry} is more than half of LEASE_RENEW_DEADLINE, "
                f"{self.lease_renew_deadline}: one lost renewal would end the term"
            )
        if self.leader_election and not self.lease_namespace:
            raise ValueError(
                "LEASE_NAMESPACE: must be set, because LEADER_ELECTION is true and this is not a pod, whose own "
                "namespace would be taken"
            )
        return self

    @property
    def redis(self) -> str | None:
        """URL of the queues' Redis; ``None`` when there is none."""
        if self.redis_url:
            return self.redis_url.get_secret_value()
        if not self.redis_host:
            return None
        password = self.redis_password.get_secret_value() if self.redis_password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        login = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{login}{host}:{self.redis_port}/0"
