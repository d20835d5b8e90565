"""A small client for the Kubernetes API that speaks plain JSON.

The generated models of the ``kubernetes`` package cost ten times the time and memory of the JSON that they are made
from, and refuse fields that they do not know; its configuration loading, which handles kubeconfigs, exec plugins
and rotating in-cluster tokens, is used.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from claudejobs.api.base import GROUP, PLURAL, VERSION
from claudejobs.api.pool import POOL_PLURAL
from claudejobs.api.queue import QUEUE_PLURAL
from claudejobs.reconcile.views import MANAGED_BY_LABEL, MANAGER

PAGE = 500
"""Objects in one page of a list."""

WATCH_SECONDS = 240
"""How long one request of a watch lasts. A connection that died without a word is noticed by then."""

POD_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER}"

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

USER_AGENT = "claudejobs-operator"
"""What the operator calls itself; a slash and the process's identity follow."""


class ApiError(Exception):
    """The API server refused, or could not be reached (``status`` 0).

    Attributes:
        status: HTTP status.
        reason: the API's one-word reason, such as AlreadyExists.
        retry_after: seconds that the server asked to wait, or ``None``.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


def _path(root: str, plural: str, namespace: str | None, name: str | None, subresource: str) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    tail = (f"/{name}" if name else "") + (f"/{subresource}" if subresource else "")
    return f"{root}{scope}/{plural}{tail}"


def jobs_path(namespace: str | None, name: str | None = None, subresource: str = "") -> str:
    """Path of the jobs of a namespace (``None``: of all), or of one job."""
    return _path(f"/apis/{GROUP}/{VERSION}", PLURAL, namespace, name, subresource)


def queues_path(namespace: str | None, name: str | None = None, subresource: str = "") -> str:
    """Path of the ClaudeCodeQueues of a namespace (``None``: of all), or of one."""
    return _path(f"/apis/{GROUP}/{VERSION}", QUEUE_PLURAL, namespace, name, subresource)


def pools_path(namespace: str | None, name: str | None = None, subresource: str = "") -> str:
    """Path of the ClaudeCodePools of a namespace (``None``: of all), or of one."""
    return _path(f"/apis/{GROUP}/{VERSION}", POOL_PLURAL, namespace, name, subresource)


def pods_path(namespace: str | None, name: str | None = None, subresource: str = "") -> str:
    """Path of the pods of a namespace (``None``: of all), or of one pod."""
    return _path("/api/v1", "pods", namespace, name, subresource)


def claims_path(namespace: str, name: str | None = None) -> str:
    """Path of the PersistentVolumeClaims of a namespace, or of one."""
    return _path("/api/v1", "persistentvolumeclaims", namespace, name, "")


def resource_of(path: str) -> str:
    """The resource of a path, such as ``pods`` or ``claudecodejobs/status``, without namespace and name."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return "/".join([parts[0], *parts[2:]])


def leases_path(namespace: str) -> str:
    """Path of the leases of a namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


@dataclass(frozen=True)
class Fence:
    """Keeps a process that leads no more, or may not, from writing.

    Attributes:
        left: how many seconds a write which is sent now may take; not positive when none may be sent.
        grace: seconds that what was sent may still be under way after that.
    """

    left: Callable[[], float]
    grace: float

    def check(self) -> float:
        """Seconds left, more than 0.

        Raises:
            ApiError: (NotLeading) nothing may be written.
        """
        left = self.left()
        if left <= 0:
            raise ApiError(0, "NotLeading", "this process does not lead, or has not renewed the lease in time")
        return left

    def socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket of which the kernel drops what it cannot deliver within the grace. Otherwise it would go on sending
        a write after the process gave the write up, and deliver it when the network is back."""
        made = socket.socket(*address[:3])
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.grace * 1000))
        return made


class _FencedBody(aiohttp.BytesPayload):
    """A request's body that is not sent, and the request with it, if the fence shuts while the connection is made
    or the process is stopped: nothing lies between this check and the socket."""

    def __init__(self, data: bytes, fence: Fence) -> None:
        super().__init__(data)
        self._fence = fence

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._fence.check()
        await super().write_with_length(writer, content_length)


OnWrite = Callable[[str, str, int], None]
"""Is told of each write that was sent: verb, resource, and the answer's HTTP status (0: no answer)."""


class KubeClient:
    """Plain-JSON requests to one API server. Made by ``connect``; not safe across event loops."""

    def __init__(
        self,
        configuration: Configuration,
        session: aiohttp.ClientSession,
        fence: Fence | None = None,
        on_write: OnWrite | None = None,
    ) -> None:
        self._configuration = configuration
        self._session = session
        self._fence = fence
        self._on_write = on_write
        self._base = configuration.host.rstrip("/")

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, identity: str, fence: Fence | None = None, on_write: OnWrite | None = None
    ) -> AsyncIterator[KubeClient]:
        """Connect as the pod's service account, or else as the kubeconfig says.

        Args:
            identity: tells this process from others in the API server's audit log.
            fence: is asked before each write; without one, all are sent.
            on_write: counts writes.

        Raises:
            ApiError: there is neither.
        """
        configuration = await _load_configuration()
        connector = aiohttp.TCPConnector(
            ssl=_ssl_context(configuration), limit=0, socket_factory=fence.socket if fence else None
        )
        headers = {"User-Agent": f"{USER_AGENT}/{identity}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            yield cls(configuration, session, fence, on_write)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Any:
        """One request; the answer's JSON.

        Raises:
            ApiError: any answer but 2xx, no answer in time (``timeout`` in seconds), no connection; a write that the
                fence stops.
        """
        headers = {"Content-Type": content_type, "Accept": "application/json"} | await self._authorization()
        raw = None if body is None else json.dumps(body).encode()
        data: bytes | _FencedBody | None = raw
        if self._fence and method != "GET":
            timeout = min(timeout, self._fence.check())
            # The server, too, gives up by then: it may have the request and be slow to carry it out.
            params = {**(params or {}), "timeout": f"{max(timeout, 0.001):.3f}s"}
            data = _FencedBody(raw or b"", self._fence)
        # Without the infinity, aiohttp rounds a timeout of more than 5 s up to a whole second.
        limit = aiohttp.ClientTimeout(total=timeout, ceil_threshold=float("inf"))
        try:
            async with self._session.request(
                method, self._base + path, data=data, params=params, headers=headers, timeout=limit
            ) as response:
                payload = await response.read()
                self._count(method, path, response.status)
                if response.status >= 300:
                    raise _api_error(response, payload)
                return json.loads(payload) if payload else {}
        except json.JSONDecodeError as error:
            raise ApiError(0, type(error).__name__, str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            self._count(method, path, 0)
            raise ApiError(0, type(error).__name__, str(error) or "no answer") from error

    def _count(self, method: str, path: str, status: int) -> None:
        if self._on_write and method != "GET":
            self._on_write(method, resource_of(path), status)

    async def get(
        self, path: str, params: dict[str, str] | None = None, timeout: float = 30.0
    ) -> dict[str, Any] | None:
        """One object, ``None`` when it does not exist."""
        try:
            result: dict[str, Any] = await self.request("GET", path, params=params, timeout=timeout)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return result

    async def pages(self, path: str, selector: str = "") -> AsyncIterator[dict[str, Any]]:
        """The pages of a list: all of one snapshot, whose version is in the metadata of each.

        Raises:
            ApiError: also 410 (Expired) when the list took longer than the server keeps its snapshot.
        """
        params = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self.request("GET", path, params=params, timeout=60.0)
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            params["continue"] = token
            await asyncio.sleep(0)

    async def list(self, path: str, selector: str = "") -> AsyncIterator[dict[str, Any]]:
        """All objects, page by page, so that a large list neither blocks the loop nor fills memory.

        Raises:
            ApiError: as ``pages`` does.
        """
        async for page in self.pages(path, selector):
            for item in page["items"]:
                yield item

    async def watch(self, path: str, selector: str, version: str) -> AsyncIterator[dict[str, Any]]:
        """Events of a collection after a version of it, bookmarks included; ends when the server ends it.

        Raises:
            ApiError: also 410 (Expired) when the server does not know any more what came after that version.
        """
        params = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        params |= {"timeoutSeconds": str(WATCH_SECONDS)} | ({"labelSelector": selector} if selector else {})
        timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_connect=10)
        try:
            async with self._session.get(
                self._base + path, params=params, headers=await self._authorization(), timeout=timeout
            ) as response:
                if response.status >= 300:
                    raise _api_error(response, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        event: dict[str, Any] = json.loads(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            raise ApiError(status.get("code", 0), status.get("reason", ""), status.get("message", ""))
                        yield event
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            raise ApiError(0, type(error).__name__, str(error) or "the watch was cut") from error

    async def patch_status(self, namespace: str, name: str, resource_version: str, status: dict[str, Any]) -> Any:
        """Replace a job's status, unless the job has changed since ``resource_version`` (ApiError 409).

        A JSON patch, because a merge patch would drop every null inside the agent's structured output.
        """
        body = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        return await self.request("PATCH", jobs_path(namespace, name, "status"), body, content_type=JSON_PATCH)

    @asynccontextmanager
    async def follow_log(self, namespace: str, pod: str, container: str, since: str | None) -> AsyncIterator[Any]:
        """Stream a container's log with timestamps; the context's value is the body, to read in chunks.

        Args:
            since: RFC 3339 time from which on (whole seconds count), ``None`` from the beginning.
        """
        params = {"container": container, "follow": "true", "timestamps": "true"}
        if since:
            params["sinceTime"] = since
        # The kubelet says nothing while a container prints nothing, which may take as long as the job.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with self._session.get(
                self._base + pods_path(namespace, pod, "log"),
                params=params,
                headers=await self._authorization(),
                timeout=timeout,
            ) as response:
                if response.status >= 300:
                    raise _api_error(response, await response.read())
                yield response.content
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, type(error).__name__, str(error) or "the log stream was cut") from error

    async def _authorization(self) -> dict[str, str]:
        token = await self._configuration.get_api_key_with_prefix("authorization", alias="BearerToken")
        return {"Authorization": token} if token else {}


async def _load_configuration() -> Configuration:
    configuration = Configuration()
    try:
        loaded = config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        if asyncio.iscoroutine(loaded):
            await loaded
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            text = f"neither a pod's service account nor a usable kubeconfig ({error}); set KUBECONFIG"
            raise ApiError(0, "NoConfiguration", text) from error
    return configuration


def _ssl_context(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _api_error(response: aiohttp.ClientResponse, payload: bytes) -> ApiError:
    try:
        status = json.loads(payload)
        reason, message = status.get("reason", ""), status.get("message", "")
    except (json.JSONDecodeError, AttributeError):
        reason, message = response.reason or "", payload[:500].decode(errors="replace")
    after = response.headers.get("Retry-After", "")
    return ApiError(response.status, reason, message, float(after) if after.isdecimal() else None)
