"""Connects to Redis as a URL says."""

from __future__ import annotations

from typing import Any

from redis import exceptions
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from claudejobs.api.redis_url import RedisUrl

Client = Redis | RedisCluster

COMMAND_TIMEOUT = 5.0
"""Seconds that one command may take."""

BLOCK_SECONDS = 5
"""How long a blocking read waits for news, seconds."""


class _Cluster(RedisCluster):
    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except AttributeError as error:
            # When a node is lost the library closes its connections, also one that another task is just opening.
            raise exceptions.ConnectionError("the connection was closed while it was opened") from error


def connect(url: str, blocking: bool = False) -> Client:
    """A client; it connects when it is first used, and again after every loss.

    Short timeouts and few retries of its own: callers try again on their own terms, and must learn soon that Redis
    is away. (The library's default retries for minutes without a word.) A server that does not answer in time is not
    asked again. One that has become a replica is left: its address may lead to the master by now.

    Args:
        blocking: for reads that wait up to ``BLOCK_SECONDS`` for news. With a shorter timeout such a connection
            would go deaf: the wait would look like a server that does not answer.

    Raises:
        ValueError: the URL cannot be used.
    """
    target = RedisUrl.parse(url)
    network: dict[str, Any] = {
        "socket_timeout": COMMAND_TIMEOUT + (BLOCK_SECONDS if blocking else 0),
        "socket_connect_timeout": 2.0,
    }
    network |= {key: value for key, value in target.options.items() if key.startswith("ssl_")}
    if target.tls:
        network["ssl"] = True
    options: dict[str, Any] = network | {
        "decode_responses": True,
        "protocol": 2,  # one shape of answers, from every version of the server
        "retry": Retry(
            ExponentialBackoff(cap=0.5, base=0.05), 2, (exceptions.ConnectionError, exceptions.ReadOnlyError)
        ),
        "client_name": "claudejobs",
        "username": target.username,
        "password": target.password,
    }
    if target.kind == "cluster":
        return _Cluster(startup_nodes=[ClusterNode(host, port) for host, port in target.hosts], **options)
    if target.kind == "server":
        ((host, port),) = target.hosts
        return Redis(host=host, port=port, db=target.database, max_connections=64, **options)
    login = {key: target.options.get(f"sentinel_{key}") for key in ("username", "password")}
    sentinel: Any = Sentinel(list(target.hosts), sentinel_kwargs=network | login, **options)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(target.master, db=target.database)
    return client


_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "check the user and the password in REDIS_URL, or REDIS_PASSWORD"),
    (exceptions.NoPermissionError, "docs/queue.md has the ACL rules that the user of REDIS_URL needs"),
    (exceptions.ReadOnlyError, "REDIS_URL must lead to the master, not to a replica"),
    (exceptions.OutOfMemoryError, "the server is out of memory: raise maxmemory, or make room"),
)


def describe(error: Exception) -> str:
    """What went wrong with Redis, and what to do where that is known; never with a password."""
    advice = next((text for kind, text in _ADVICE if isinstance(error, kind)), "")
    return f"Redis: {error}" + (f" ({advice})" if advice else "")
