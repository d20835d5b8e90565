"""How a job's pod gets at the model: with the API's key itself, or with a token of its own for the gateway. Pure."""

from __future__ import annotations

from typing import Any

from claudejobs.api.events import GATEWAY_AUDIENCE, TOKEN_DIR, TOKEN_FILE_VARIABLE
from claudejobs.api.job import CredentialsSecretRef, JobSpec
from claudejobs.settings import Settings

VOLUME = "token"

MIN_TOKEN_SECONDS = 600
"""The API server makes no token that lives shorter."""


def environment(spec: JobSpec, settings: Settings) -> list[dict[str, Any]]:
    """Environment of the runner's container: the model API's address and key, or the gateway's address and where the
    token is. The author's variables go to the agent only, through the runner, and cannot change these."""
    if settings.model_gateway_url:
        return [
            {"name": "ANTHROPIC_BASE_URL", "value": settings.model_gateway_url},
            {"name": TOKEN_FILE_VARIABLE, "value": f"{TOKEN_DIR}/token"},
        ]
    secret = spec.credentials_secret_ref or CredentialsSecretRef(name=settings.credentials_secret)
    env: list[dict[str, Any]] = [
        {"name": secret.key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
    ]
    if settings.model_base_url:
        env.append({"name": "ANTHROPIC_BASE_URL", "value": settings.model_base_url})
    return env


def mounts(settings: Settings) -> list[dict[str, Any]]:
    """Where the runner's container has the token; no other container has it."""
    return [{"name": VOLUME, "mountPath": TOKEN_DIR, "readOnly": True}] if settings.model_gateway_url else []


def volumes(deadline: int, settings: Settings) -> list[dict[str, Any]]:
    """The pod's token for the gateway, bound to the pod and good for nothing else.

    It outlives the pod's ``deadline`` (seconds), so that it need not change: the kubelet renews a token at 80 % of its
    time. Where the API server grants less, the agent reads the renewed one.
    """
    if not settings.model_gateway_url:
        return []
    token = {
        "audience": GATEWAY_AUDIENCE,
        "expirationSeconds": max(MIN_TOKEN_SECONDS, deadline * 5 // 4),
        "path": "token",
    }
    return [{"name": VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}]
