"""Who calls: from a projected service-account token to the pod that it is bound to.

The API server is asked by a TokenReview, and its answer is kept for a short time. A token that cannot be one for this
gateway by its own words is turned down without asking, so that noise does not reach the API server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claudejobs.api.events import GATEWAY_AUDIENCE
from claudejobs.kube.client import ApiError, KubeClient

from .admission import Caller
from .refusal import RefusedError, unauthenticated

logger = logging.getLogger(__name__)

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
PREFIX = "system:serviceaccount:"

FRESH_SECONDS = 30.0
"""How long an answer is taken for true. The pod's own end is seen by the watch, and at once."""

STALE_SECONDS = 300.0
"""How long it still is when the API server cannot be asked: running jobs survive an outage of it."""

REFUSED_SECONDS = 10.0
MAX_KEPT = 20_000
"""Answers kept of each kind."""

MAX_TOKEN = 8192
"""Characters; tokens of service accounts have some 1,200."""

MAX_REVIEWS = 16
"""TokenReviews at a time."""


@dataclass
class _Known:
    caller: Caller
    reviewed: float
    expires: float


class Identities:
    """Reviews tokens, each once for all requests that come at the same time."""

    def __init__(
        self, client: KubeClient, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._clock = clock
        self._wall = wall
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        # Apart, so that a flood of wrong tokens does not push out the good.
        self._refused: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}
        self._gate = asyncio.Semaphore(MAX_REVIEWS)

    async def caller(self, token: str) -> Caller:
        """The pod that a token belongs to.

        Raises:
            RefusedError: to none, or the API server cannot be asked.
        """
        expires = self._plausible_until(token)
        key = hashlib.sha256(token.encode()).digest()
        known, now = self._known.get(key), self._clock()
        if known is not None and now < known.reviewed + FRESH_SECONDS:
            return known.caller
        until, why = self._refused.get(key, (0.0, ""))
        if now < until:
            raise unauthenticated(why)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._review(key, token, expires))
            task.add_done_callback(lambda done: self._asked(key, done))
        try:
            # Shielded: others wait for it, too, when this client goes away.
            return (await asyncio.shield(task)).caller
        except ApiError as error:
            if known is not None and now < known.reviewed + STALE_SECONDS:
                logger.warning("a token cannot be reviewed, and the last answer is used: %s", error)
                return known.caller
            logger.warning("a token cannot be reviewed: %s", error)
            message = "the Kubernetes API server cannot be asked about the token"
            raise RefusedError(503, "api_error", "unreviewed", message, 2) from error

    def _asked(self, key: bytes, task: asyncio.Task[_Known]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, even when every client that waited is gone

    def _plausible_until(self, token: str) -> float:
        """When the token expires, by its own words (Unix time)."""
        if not token:
            raise unauthenticated("there is no token; a job's pod has one of its own")
        if len(token) > MAX_TOKEN:
            raise unauthenticated("this is not a service-account token")
        claims = _claims(token)
        audience, expires = claims.get("aud"), claims.get("exp")
        if GATEWAY_AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
            raise unauthenticated(f"this is not a service-account token for the audience {GATEWAY_AUDIENCE}")
        if not isinstance(expires, int | float) or expires <= self._wall():
            raise unauthenticated("the token has expired")
        return float(expires)

    async def _review(self, key: bytes, token: str, expires: float) -> _Known:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [GATEWAY_AUDIENCE]},
        }
        async with self._gate:
            answer = await self._client.request("POST", REVIEWS, body, timeout=10.0)
        now = self._clock()
        try:
            caller = caller_of(answer.get("status") or {})
        except RefusedError as refusal:
            self._known.pop(key, None)
            self._refused[key] = (now + REFUSED_SECONDS, refusal.message)
            _bound(self._refused)
            raise
        known = self._known[key] = _Known(caller, now, expires)
        self._known.move_to_end(key)
        _bound(self._known)
        return known


def caller_of(status: dict[str, Any]) -> Caller:
    """The pod, from the status of a TokenReview.

    Raises:
        RefusedError: the API server does not know the token, or it is bound to no pod.
    """
    if not status.get("authenticated"):
        raise unauthenticated("the API server does not accept the token: it has expired, or its pod is gone")
    if GATEWAY_AUDIENCE not in (status.get("audiences") or []):
        # A server that does not know audiences says nothing of them, and would take any token.
        raise unauthenticated(f"the token is not for the audience {GATEWAY_AUDIENCE}")
    user = status.get("user") or {}
    extra, name = user.get("extra") or {}, str(user.get("username", ""))
    pod, uid = (extra.get(POD_NAME) or [""])[0], (extra.get(POD_UID) or [""])[0]
    namespace = name.removeprefix(PREFIX).partition(":")[0]
    if not name.startswith(PREFIX) or not (namespace and pod and uid):
        raise unauthenticated("the token is not bound to a pod")
    return Caller(namespace, pod, uid)


def _claims(token: str) -> dict[str, Any]:
    """What a JWT says of itself, unproved; empty when it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _bound(kept: OrderedDict[bytes, Any]) -> None:
    while len(kept) > MAX_KEPT:
        kept.popitem(last=False)
