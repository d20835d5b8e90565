"""A TCP proxy as a process of its own, so that a test can take a server's place.

It hangs (SIGSTOP), is cut off (SIGKILL), or breaks the connections of the moment (SIGUSR1).

As a program: ``python -m tests.support.proxy PORT TARGET_HOST TARGET_PORT``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from .kube import wait_for
from .operator import REPOSITORY, free_port


class ApiServerProxy:
    """Stands between the API server of a kubeconfig and whoever uses ``kubeconfig``, a copy in ``folder``."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        server, self._port = urlsplit(cluster["server"]), free_port()
        cluster["server"] = f"https://127.0.0.1:{self._port}"
        self.kubeconfig = folder / "kubeconfig-of-the-proxy"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.proxy", str(self._port), str(server.hostname), str(server.port)],
            cwd=REPOSITORY,
            env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'operator'}"},
        )
        wait_for(self._listens, "the proxy listens")

    def hang(self) -> None:
        """Let connections stand, and nothing pass."""
        self._process.send_signal(signal.SIGSTOP)

    def cut(self) -> None:
        """Break connections, and refuse new ones."""
        self._process.kill()
        self._process.wait()

    def break_connections(self) -> None:
        """Break connections, and take new ones."""
        self._process.send_signal(signal.SIGUSR1)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(port: int, host: str, target: int) -> None:
    open_ones: set[asyncio.StreamWriter] = set()

    def break_all() -> None:
        for writer in open_ones:
            writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, target)
        open_ones.update((writer, back))
        await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
        open_ones.difference_update((writer, back))

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, break_all)
    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
