"""A proxy between one operator and Redis, which kills the operator or cuts its connection at one command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bullmq

from claudejobs.intake import scripts

from .faults import Kind

_SETTING_UP = frozenset({"AUTH", "CLIENT", "COMMAND", "HELLO", "PING", "SCRIPT", "SELECT"})
"""Commands that make a connection or load a script; they change nothing that a crash could leave half done."""

_MARK = b"the command before is done"


@dataclass(frozen=True)
class RedisFault:
    """A fault at one command.

    Attributes:
        command: Redis' name of it, or the script's.
        at: which of the operator's commands of this name, from 1.
    """

    kind: Kind
    command: str
    at: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.command} number {self.at}"


@cache
def _scripts() -> dict[str, str]:
    """Names of the scripts by their digest."""
    texts = {name: text for name, text in vars(scripts).items() if name.isupper() and "redis.call" in str(text)}
    for file in (Path(bullmq.__file__).parent / "commands").glob("*.lua"):
        texts[file.stem.partition("-")[0]] = file.read_text()
    return {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in texts.items()}


class RedisProxy:
    """Attributes:
    commands: the operator's commands, by name, how often.
    hit: whether the fault has struck.
    """

    def __init__(self, port: int, fault: RedisFault | None, crash: Callable[[], Awaitable[None]]) -> None:
        self.commands: Counter[str] = Counter()
        self.hit = False
        self._upstream, self._fault, self._crash = port, fault, crash

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen on the loopback; the operator's REDIS_URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        replies = asyncio.create_task(_pump(upstream_reader, writer))
        try:
            while True:
                raw, command = await _read_command(reader)
                kind = self._strikes(command)
                if kind is None:
                    upstream_writer.write(raw)
                    await upstream_writer.drain()
                    continue
                replies.cancel()
                await asyncio.wait([replies])  # only one may read at a time
                if kind not in (Kind.CRASH_BEFORE, Kind.CUT_BEFORE):
                    # Redis answers in order: once it has echoed the mark, the command has been carried out.
                    upstream_writer.write(raw + b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(_MARK), _MARK))
                    await upstream_reader.readuntil(_MARK)
                if kind in (Kind.CRASH_BEFORE, Kind.CRASH_AFTER):
                    await self._crash()
                return
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            replies.cancel()
            for each in (writer, upstream_writer):
                with contextlib.suppress(OSError):
                    each.transport.abort()

    def _strikes(self, command: list[bytes]) -> Kind | None:
        """Count the command; the fault that strikes at it, if any."""
        name = command[0].decode().upper()
        if name in _SETTING_UP:
            return None
        if name == "EVALSHA":
            name = _scripts().get(command[1].decode(), "unknown script")
        self.commands[name] += 1
        fault = self._fault
        if fault is None or self.hit or (fault.command, fault.at) != (name, self.commands[name]):
            return None
        self.hit = True
        return fault.kind


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


async def _read_command(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """One command as clients send it: an array of strings; its bytes and its parts."""
    raw = await reader.readuntil(b"\r\n")
    parts = []
    for _ in range(int(raw[1:])):
        head = await reader.readuntil(b"\r\n")
        part = await reader.readexactly(int(head[1:]) + 2)
        raw += head + part
        parts.append(part[:-2])
    return raw, parts
