"""URLs of a Redis: a server, one that Sentinel watches over, or a Cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["server", "sentinel", "cluster"]

_SCHEMES: dict[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password"})


@dataclass(frozen=True)
class RedisUrl:
    """A URL that can be used.

    Attributes:
        hosts: names or addresses with their ports; more than one for Sentinels, and for a Cluster's nodes.
        master: what Sentinel calls the server.
        options: ssl_ca_certs, ssl_certfile and ssl_keyfile (paths), sentinel_username and sentinel_password.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    database: int = 0
    master: str = ""
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Read a URL.

        Raises:
            ValueError: it cannot be used. The message does not contain it, because it may have a password.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # its message may show the password
            raise ValueError("must be a URL, with user and password percent-encoded") from None
        kind = _SCHEMES.get(parts.scheme)
        if kind is None:
            raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
        login, _, places = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        hosts = tuple(_host(place, 26379 if kind == "sentinel" else 6379) for place in places.split(","))
        if kind == "server" and len(hosts) > 1:
            raise ValueError("names several hosts; for that, start with redis+sentinel:// or redis+cluster://")
        path = [part for part in parts.path.split("/") if part]
        master = path.pop(0) if kind == "sentinel" and path else ""
        if kind == "sentinel" and not master:
            raise ValueError("must name Sentinel's master after the hosts: redis+sentinel://HOST:PORT/MASTER")
        if len(path) > 1 or not all(part.isdecimal() for part in path) or (path and kind == "cluster"):
            raise ValueError("must end with nothing but the number of the database, and a Cluster has only one")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(set(options) - _OPTIONS):
            raise ValueError(f"has unknown options {', '.join(unknown)}; known are {', '.join(sorted(_OPTIONS))}")
        return cls(
            kind=kind,
            hosts=hosts,
            tls=parts.scheme.startswith("rediss"),
            username=unquote(user) or None,
            password=unquote(password) or None,
            database=int(path[0]) if path else 0,
            master=master,
            options=options,
        )


def _host(place: str, default_port: int) -> tuple[str, int]:
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, port = place, str(default_port)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("must give each host as HOST or HOST:PORT")
    return host.strip("[]"), int(port)
