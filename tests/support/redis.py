"""Real Redis: one server, a Sentinel set, a Cluster of one node. All can be hung, killed and restarted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from cryptography.hazmat.primitives.serialization import Encoding
from redis.backoff import NoBackoff
from redis.retry import Retry

from localcluster.pki import Identity, issue, new_authority

from .debian import provide
from .kube import wait_for

DEADLINE = 30.0
LOOPBACK = "127.0.0.1"

_CLIENT: dict[str, Any] = {"decode_responses": True, "socket_timeout": DEADLINE, "retry": Retry(NoBackoff(), 0)}


def find_binary() -> str:
    """Return Debian's redis-server, installed when root."""
    return provide("redis-server", lambda: shutil.which("redis-server"))


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no client.

    A client that keeps connecting to a server that is away, on this machine, may else be given the server's own port
    as its source, connect to itself, and keep the server from coming back.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(lowest // 2, lowest), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    pytest.fail(f"no free port below {lowest}", pytrace=False)


class RedisServer:
    """One redis-server with data in a folder of its own. Every write is on the disk before it is answered.

    Args:
        folder: where its configuration, data and log are; it must exist.
        password: what clients must say; empty for none.
        user: the ACL user of that password; ``default`` may then do nothing.
        tls: whether it speaks TLS only, with a certificate of a CA in ``ca_file``.
        host: an address to listen on besides loopback, such as the gateway that pods reach; clients are told it.
        database: number of the database that ``url`` names and ``client`` uses.
        cluster: whether it is a Redis Cluster of one node, which has all slots.
        config: more of redis.conf, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str = "",
        user: str = "",
        tls: bool = False,
        host: str = LOOPBACK,
        database: int = 0,
        cluster: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.host, self.port = folder, host, free_port()
        self.user, self.password, self.database, self.cluster = user, password, database, cluster
        self.ca_file: Path | None = None
        self._data = folder / "data"
        self._data.mkdir()
        self._process = _Process(folder)
        self._config: dict[str, str] = {
            "bind": " ".join(dict.fromkeys((LOOPBACK, host))),
            "port": str(self.port),
            "protected-mode": "no",
            "dir": str(self._data),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": '""',
            **(self._encryption() if tls else {}),
            **(self._one_node_cluster() if cluster else {}),
            **(config or {}),
        }

    def _access(self) -> list[str]:
        if self.user:
            return [f'user {self.user} on ">{self.password}" ~* &* +@all', "user default off"]
        return [f'requirepass "{self.password}"', f'masterauth "{self.password}"'] if self.password else []

    def _encryption(self) -> dict[str, str]:
        authority = new_authority("Redis of a test")
        self.ca_file, *files = (self.folder / name for name in ("ca.crt", "server.crt", "server.key"))
        self.ca_file.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        for file, content in zip(
            files, issue(authority, Identity("redis", hosts=("localhost", LOOPBACK, self.host))), strict=True
        ):
            file.write_bytes(content)
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(files[0]),
            "tls-key-file": str(files[1]),
            "tls-ca-cert-file": str(self.ca_file),
            "tls-auth-clients": "no",
        }

    def _one_node_cluster(self) -> dict[str, str]:
        # Its configuration is no data: it stays in the folder when the data are removed.
        return {
            "cluster-enabled": "yes",
            "cluster-config-file": str(self.folder / "nodes.conf"),
            "cluster-port": str(free_port()),
            "cluster-announce-ip": self.host,
        }

    def start(self) -> RedisServer:
        """Start the server and wait until it takes commands; does nothing when it runs."""
        if self._process.running:
            return self
        self._process.start([f"{name} {value}" for name, value in self._config.items()] + self._access())
        try:
            with self.client() as client:
                self._process.wait_until(lambda: bool(client.ping()))
                if self.cluster:
                    self._take_slots(client)
        except BaseException:
            self.kill()
            raise
        return self

    @staticmethod
    def _take_slots(client: redis.Redis) -> None:
        def info(name: str) -> str:
            return str(client.execute_command("CLUSTER INFO")[name])  # type: ignore[no-untyped-call]

        if info("cluster_slots_assigned") == "0":
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        wait_for(lambda: info("cluster_state") == "ok", "the Cluster is ok", DEADLINE)

    def stop(self) -> None:
        """Stop cleanly; does nothing when it does not run."""
        self._process.end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), frozen or not."""
        self._process.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Hang it: the kernel still takes connections, and nothing ever answers."""
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """End a hang."""
        self._process.send(signal.SIGCONT)

    def restart(self, *, keep_data: bool = True) -> None:
        """Kill it and start it again on the same port, with what it had written or with nothing."""
        self.kill()
        if not keep_data:
            shutil.rmtree(self._data)
            self._data.mkdir()
        self.start()

    def set_password(self, password: str) -> None:
        """Change the password of the running server; connections that are logged in stay so."""
        with self.client() as client:
            if self.user:
                client.acl_setuser(self.user, enabled=True, passwords=[f"+{password}"], reset_passwords=True)
            else:
                client.config_set("requirepass", password)
            client.config_rewrite()
        self.password = password

    def url(self) -> str:
        """The operator's REDIS_URL."""
        scheme = f"redis{'s' if self.ca_file else ''}{'+cluster' if self.cluster else ''}"
        return self._url(scheme, self.host, "" if self.cluster else f"/{self.database}")

    def _url(self, scheme: str, host: str, path: str) -> str:
        options = f"?ssl_ca_certs={quote(str(self.ca_file))}" if self.ca_file else ""
        return f"{scheme}://{_login(self.user, self.password)}{host}:{self.port}{path}{options}"

    def client(self, **options: Any) -> redis.Redis:
        """A client that answers with text and tries once, to be closed by the caller."""
        url = self._url("rediss" if self.ca_file else "redis", LOOPBACK, f"/{self.database}")
        return redis.Redis.from_url(url, **(_CLIENT | options))

    def node_connection(self) -> dict[str, Any]:
        """The same as ioredis's options, for tests/node."""
        login = {"username": self.user, "password": self.password} if self.password else {}
        tls = {"tls": {"ca": self.ca_file.read_text()}} if self.ca_file else {}
        node = {"host": self.host, "port": self.port}
        if self.cluster:
            return {"cluster": [node], **login, **tls}
        return {**node, "db": self.database, **login, **tls}

    def log(self) -> str:
        """Return what the server logged."""
        return self._process.log.read_text(errors="replace")

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class SentinelSet:
    """A master, its replica, and one Sentinel whose word alone is enough to make the replica the master.

    The servers listen on loopback and on ``host``, which is the address that Sentinel names to clients.
    """

    name = "primary"

    def __init__(self, folder: Path, *, password: str = "", host: str = LOOPBACK) -> None:
        self.password, self.host, self.port = password, host, free_port()
        for part in ("first", "second", "sentinel"):
            (folder / part).mkdir()
        config = {"repl-diskless-sync-delay": "0", "replica-announce-ip": host}  # no waiting for more replicas
        first = RedisServer(folder / "first", password=password, host=host, config=config)
        replica_of = {"replicaof": f"{host} {first.port}"}
        second = RedisServer(folder / "second", password=password, host=host, config=config | replica_of)
        self.servers = (first, second)
        self._sentinel = _Process(folder / "sentinel", "--sentinel")

    def start(self) -> SentinelSet:
        """Start all three and wait until a failover is possible."""
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def _start(self) -> None:
        for server in self.servers:
            server.start()
        lines = [
            f"bind {' '.join(dict.fromkeys((LOOPBACK, self.host)))}",
            f"port {self.port}",
            "protected-mode no",
            f"dir {self._sentinel.folder}",
            f"sentinel monitor {self.name} {self.host} {self.servers[0].port} 1",
            f"sentinel down-after-milliseconds {self.name} 1000",
            f"sentinel failover-timeout {self.name} 5000",
        ]
        if self.password:
            lines.append(f'sentinel auth-pass {self.name} "{self.password}"')
        self._sentinel.start(lines)
        with self.sentinel() as client:
            self._sentinel.wait_until(lambda: bool(client.ping()))
            # It looks every ten seconds otherwise, and gives a former master twenty before it makes it a replica.
            client.execute_command("SENTINEL DEBUG", "info-period", 200, "publish-period", 200)
        wait_for(self._can_fail_over, f"Sentinel knows a replica in step: {self._sentinel.log}", DEADLINE)

    def _can_fail_over(self) -> bool:
        with self.sentinel() as client:
            replicas = client.sentinel_slaves(self.name)
        return any(replica["master-link-status"] == "ok" and not replica["is_sdown"] for replica in replicas)

    def sentinel(self) -> redis.Redis:
        """A client of the Sentinel itself, to be closed by the caller."""
        return redis.Redis(host=LOOPBACK, port=self.port, **_CLIENT)

    @property
    def master(self) -> RedisServer:
        """The server that Sentinel names to clients as the master."""
        with self.sentinel() as client:
            _, port = client.sentinel_get_master_addr_by_name(self.name)
        return next(server for server in self.servers if server.port == int(port))

    def failover(self, *, kill: bool = False) -> RedisServer:
        """Make the replica the master and wait until it is one; the new master.

        By order, both then run, the former master as replica. With ``kill``, because the master dies: Sentinel notices
        that after a second. The dead one returns as replica by ``start`` of its server.
        """
        former = self.master
        other = next(server for server in self.servers if server is not former)
        if kill:
            former.kill()
        else:
            with self.sentinel() as client:
                client.execute_command("SENTINEL", "FAILOVER", self.name)
        wait_for(lambda: self.master is other, "Sentinel names the other server", DEADLINE)
        wait_for(lambda: _role(other)[:1] == ["master"], "the other server is master", DEADLINE)
        if not kill:
            wait_for(lambda: _role(former)[:1] == ["slave"], "the former master is a replica", DEADLINE)
        return other

    def kill(self) -> None:
        """Kill all three."""
        self._sentinel.end(signal.SIGKILL)
        for server in self.servers:
            server.kill()

    def url(self) -> str:
        """The operator's REDIS_URL."""
        return f"redis+sentinel://{_login('', self.password)}{self.host}:{self.port}/{self.name}"

    def node_connection(self) -> dict[str, Any]:
        """ioredis's options, for tests/node."""
        login = {"password": self.password} if self.password else {}
        return {"sentinels": [{"host": self.host, "port": self.port}], "name": self.name, **login}

    def __enter__(self) -> SentinelSet:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""


def _role(server: RedisServer) -> list[Any]:
    # A server that changes its role drops its clients.
    with contextlib.suppress(redis.ConnectionError), server.client() as client:
        return list(client.role())
    return []


class _Process:
    """A process of redis-server: its configuration file, its log, signals."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.log = folder, folder / "log"
        self._arguments: Sequence[str] = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, lines: Sequence[str]) -> None:
        config = self.folder / "redis.conf"
        if not config.exists():  # later it is the server's own: failovers and new passwords are kept in it
            config.write_text("\n".join(lines) + "\n")
        with self.log.open("ab") as log:
            command = [find_binary(), str(config), *self._arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait_until(self, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                if answers():
                    return
            except redis.ConnectionError as error:
                if time.monotonic() > deadline or not self.running:
                    tail = self.log.read_text(errors="replace")[-3000:]
                    pytest.fail(f"Redis did not start: {error}\n{tail}", pytrace=False)
                time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        if self.running:
            assert self._process is not None
            os.kill(self._process.pid, number)

    def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self.send(how)
            self.send(signal.SIGCONT)
            self._process.wait(DEADLINE)
            self._process = None
