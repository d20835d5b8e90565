"""Connects to Redis as one URL says: a server, one that Sentinel watches over, or a Cluster."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

Client = Redis | RedisCluster

COMMAND_TIMEOUT = 5.0
"""Seconds that one command may take."""

BLOCK_SECONDS = 5
"""How long a blocking read waits for news, seconds."""

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)


class RedisUrlError(ValueError):
    """A URL cannot be used. The message does not contain it, because it may have a password."""


def check_url(url: str) -> str:
    """Return the URL if it can be used.

    Raises:
        RedisUrlError: it cannot.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise RedisUrlError(f"must start with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.scheme in SENTINEL_SCHEMES + CLUSTER_SCHEMES:
        _hosts(parts.netloc)
    if parts.scheme in SENTINEL_SCHEMES and not parts.path.strip("/"):
        raise RedisUrlError("must name Sentinel's master after the hosts: redis+sentinel://HOST:PORT,HOST:PORT/MASTER")
    return url


def connect(url: str, blocking: bool = False) -> Client:
    """A client; it connects when it is first used, and again after every loss.

    Short timeouts and few retries of its own: callers try again on their own terms, and must learn soon that Redis
    is away. (The library's default retries for minutes without a word.)

    Args:
        blocking: for reads that wait up to ``BLOCK_SECONDS`` for news. With a shorter timeout such a connection
            would go deaf: the wait would look like a server that does not answer.
    """
    parts = urlsplit(check_url(url))
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": COMMAND_TIMEOUT + (BLOCK_SECONDS if blocking else 0),
        "socket_connect_timeout": 2.0,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        "client_name": "claudejobs",
    }
    if parts.scheme in ("redis", "rediss"):
        return Redis.from_url(url, max_connections=64, **options)
    query = dict(parse_qsl(parts.query))
    if parts.scheme.startswith("rediss+"):
        options["ssl"] = True
    options |= {key: query[key] for key in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if key in query}
    user, password, hosts = _credentials(parts.netloc)
    options |= {key: value for key, value in (("username", user), ("password", password)) if value}
    if parts.scheme in CLUSTER_SCHEMES:
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in hosts], **options)
    master, _, database = parts.path.strip("/").partition("/")
    own = {"username": query.get("sentinel_username"), "password": query.get("sentinel_password")}
    sentinels = {key: value for key, value in own.items() if value} | {
        key: value for key, value in options.items() if key.startswith(("socket_", "ssl"))
    }
    sentinel: Any = Sentinel(hosts, sentinel_kwargs=sentinels, **options)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(master, db=int(database or 0))
    return client


def _credentials(netloc: str) -> tuple[str, str, list[tuple[str, int]]]:
    login, _, _ = netloc.rpartition("@")
    user, _, password = login.partition(":")
    return unquote(user), unquote(password), _hosts(netloc)


def _hosts(netloc: str) -> list[tuple[str, int]]:
    hosts = []
    for part in netloc.rpartition("@")[2].split(","):
        host, _, port = part.rpartition(":")
        if not host or not port.isdecimal():
            raise RedisUrlError("must give each host with its port: HOST:PORT,HOST:PORT")
        hosts.append((host.strip("[]"), int(port)))
    return hosts
