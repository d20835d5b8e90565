"""Operators that start in a tenth of a second, and die without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.support.operator import REPOSITORY, command_environment


class ForkServer:
    """The process that operators are forked from."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Start; it imports the operator meanwhile."""
        path = f"{REPOSITORY / 'operator'}:{REPOSITORY}"
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.seeded",
            cwd=REPOSITORY,
            # The client library takes the kubeconfig's place when it is imported: relative to each operator's folder.
            env=command_environment(PYTHONPATH=path, KUBECONFIG="kubeconfig"),
            stdin=pipe,
            stdout=pipe,
        )

    async def stop(self) -> None:
        """End it; operators that are still there end with it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def fork(self, environment: dict[str, str], folder: Path, log: Path, bug: str | None) -> Operator:
        """A new operator, in a folder with its kubeconfig. One that nobody waits for any more is ended."""
        order: dict[str, Any] = {"environment": environment, "folder": str(folder), "log": str(log), "bug": bug}
        asking = asyncio.create_task(self._ask(order))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await (await asking).kill()  # question and answer stay together, or all later answers are others' ones
            raise

    async def _ask(self, order: dict[str, Any]) -> Operator:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            line = await self._process.stdout.readline()
        assert line, "the fork server ended"
        return Operator(int(line))


class Operator:
    """A running operator. A pidfd names it, so that a process id that is used again is never hit."""

    def __init__(self, pid: int) -> None:
        self.ended = asyncio.Event()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1
            self.ended.set()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._over)

    async def kill(self) -> None:
        """Kill -9."""
        self._signal(signal.SIGKILL)
        await self.ended.wait()

    def dump(self) -> None:
        """Have it write its stacks into its log."""
        self._signal(signal.SIGUSR1)

    async def stop(self, timeout: float = 20.0) -> None:
        """SIGTERM; waits for the end."""
        self._signal(signal.SIGTERM)
        async with asyncio.timeout(timeout):
            await self.ended.wait()

    def _signal(self, number: int) -> None:
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):  # it has just ended, and the loop was not told yet
                signal.pidfd_send_signal(self._fd, number)

    def _over(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.ended.set()
