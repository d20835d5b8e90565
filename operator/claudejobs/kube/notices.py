"""Kubernetes Events: what somebody on call wants to see with ``kubectl describe``."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from .client import ApiError, KubeClient

logger = logging.getLogger(__name__)

COMPONENT = "claudejobs-operator"


async def post_event(
    client: KubeClient, about: dict[str, Any], kind: Literal["Normal", "Warning"], reason: str, message: str
) -> None:
    """Post an Event about an object. It is a notice only: what goes wrong is logged, and nothing depends on it.

    Args:
        about: apiVersion, kind, namespace, name and uid of the object.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about['name']}.{secrets.token_hex(8)}", "namespace": about["namespace"]},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await client.request("POST", f"/api/v1/namespaces/{about['namespace']}/events", body)
    except ApiError as error:
        logger.warning("an Event about %s/%s could not be posted: %s", about["namespace"], about["name"], error)
