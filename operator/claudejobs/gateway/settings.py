"""The gateway's settings, read from the environment once, at the start. Each variable begins with ``GATEWAY_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from claudejobs.settings import CommaSeparated, EnvironmentSettings, LogLevel

from .prices import Price


class GatewaySettings(EnvironmentSettings):
    """All settings. The environment variable is the field's name in upper case after ``GATEWAY_``."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    port: int = Field(8080, ge=0, le=65535, description="Port for the jobs; 0 chooses one.")
    admin_port: int = Field(
        8081, ge=0, le=65535, description="Port of /healthz, /readyz, /metrics and /jobs; 0 chooses one."
    )
    host: str = Field("0.0.0.0", min_length=1, description="Address that both ports listen on.")  # noqa: S104
    log_level: LogLevel = Field("INFO", description="Least level that is logged; INFO has a line per model call.")
    upstream_url: str = Field(
        "https://api.anthropic.com",
        pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$",
        description="The model API, or a proxy that speaks its Messages API.",
    )
    key_file: Path = Field(
        Path("/etc/claudejobs/model-key/ANTHROPIC_API_KEY"),
        description="File with the model API's key; read again when it changes.",
    )
    key_scheme: Literal["x-api-key", "bearer"] = Field(
        "x-api-key", description="How the key is sent: in the header x-api-key, or as Authorization: Bearer."
    )
    watch_namespaces: CommaSeparated = Field(
        default_factory=list, description="Namespaces whose jobs are served, comma-separated; empty means all."
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, le=2**30, description="Largest request, bytes; the public API takes 32 MiB."
    )
    max_requests_in_flight_per_job: int = Field(
        32,
        ge=1,
        le=10000,
        description="Most requests of one job at a time; it also bounds by how much a budget can be overshot.",
    )
    requests_per_minute_per_job: int | None = Field(
        None, ge=1, description="Most requests of one job in a minute, by each replica; empty: no limit."
    )
    requests_per_minute_per_namespace: int | None = Field(
        None, ge=1, description="The same for all jobs of a namespace together."
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description='US dollars per million tokens, by the beginning of the model\'s name, as JSON: {"claude-x": '
        '{"input": 3, "output": 15}}; adds to the built-in table and overrides it.',
    )
    max_retry_after: int = Field(
        300, ge=1, le=3600, description="Longest time that a model is closed after one answer 429 or 529, seconds."
    )
    connect_timeout: float = Field(10.0, gt=0, le=300, description="Longest time to connect to the model API, seconds.")
    read_timeout: float = Field(
        600.0, gt=0, le=3600, description="Longest silence of the model API inside a request, seconds."
    )
    write_timeout: float = Field(
        120.0, gt=0, le=3600, description="Longest time that a job may leave its answer unread, seconds."
    )
    drain_seconds: int = Field(
        60, ge=0, le=3600, description="How long requests that run may go on after SIGTERM, seconds."
    )

    @field_validator("upstream_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        return value.rstrip("/")
