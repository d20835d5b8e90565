"""Node programs for tests: scripts of tests/node and of examples, with the packages of the former's lock file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest

import localcluster.settings

from .debian import provide

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "tests" / "node"
DEADLINE = 60.0
_OLDEST_NODE = 20

Event = dict[str, Any]


class Server(Protocol):
    """A Redis that ioredis can be told how to reach."""

    def node_connection(self) -> dict[str, Any]:
        """ioredis's options."""


class NodeError(Exception):
    """A command failed in Node; the text is the error's message there."""


@cache
def find_node() -> str:
    """Return the program of Node, installed from Debian's package where there is none and the user is root."""
    program = provide("nodejs", lambda: shutil.which("node"))
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < _OLDEST_NODE:
        pytest.fail(
            f"this test needs Node.js {_OLDEST_NODE} or newer, {program} is {version}: "
            "install a newer one and put it first on PATH",
            pytrace=False,
        )
    return program


@cache
def install_packages() -> Path:
    """Install what tests/node/package-lock.json names, once per content of it; the folder with ``node_modules``.

    The folder is in the user's cache. Two processes at once take turns, and an installation that was cut off leaves
    nothing behind that looks finished.
    """
    find_node()
    npm = provide("npm", lambda: shutil.which("npm"))
    files = [SCRIPTS / name for name in ("package.json", "package-lock.json", ".npmrc")]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
    kept = localcluster.settings.from_environment().cache
    kept.mkdir(parents=True, exist_ok=True)
    folder = kept / f"node-{digest}"
    with (kept / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=kept, prefix="node-unfinished-") as unfinished:
                made = Path(unfinished) / "made"
                made.mkdir()
                for file in files:
                    shutil.copy(file, made)
                done = subprocess.run([npm, "ci"], cwd=made, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    pytest.fail(f"npm ci failed in a copy of {SCRIPTS}:\n{done.stdout}{done.stderr}", pytrace=False)
                made.rename(folder)
    return folder


def node_command(script: Path) -> list[str]:
    """The command that runs a script of this checkout with the installed packages."""
    # Node looks for packages beside the script and above it, so the script is run by way of a link beside them.
    packages = install_packages()
    source = script.resolve().parent
    link = packages / "from" / hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    link.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(source)
    return [find_node(), "--preserve-symlinks", "--preserve-symlinks-main", str(link / script.name)]


class NodeProcess:
    """A script of tests/node that runs until it is stopped.

    Args:
        script: its path in tests/node, such as ``producer.js``.
        server: the Redis it connects to, a RedisServer or a SentinelSet.
        version: major version of bullmq, 5 or 6.
        settings: what the script's head says that it reads.
    """

    def __init__(self, script: str, server: Server, version: int = 6, **settings: Any) -> None:
        self.script = script
        self.events: list[Event] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self._changed = threading.Condition()  # guards what the reading threads write
        self._sending = threading.Lock()
        self._errors: list[str] = []
        self._ended = False
        given = {"version": str(version), "connection": server.node_connection(), **settings}
        self._process = subprocess.Popen(
            [*node_command(SCRIPTS / script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_errors, self._read)]
        for reader in self._readers:
            reader.start()
        try:
            self.wait_for_event("ready")
        except BaseException:
            self.kill()
            raise

    def command(self, command: str, /, *, timeout: float = DEADLINE, **fields: Any) -> Any:
        """Have a command carried out; its answer.

        Raises:
            NodeError: it failed in Node, or the process ended.
            TimeoutError: no answer after ``timeout`` seconds.
        """
        return self.send(command, **fields).result(timeout)

    def send(self, command: str, /, **fields: Any) -> Future[Any]:
        """Begin a command, such as a wait for a job's end; what will be its answer."""
        number = next(self._numbers)
        answer: Future[Any] = Future()
        with self._changed:
            if self._ended:
                raise NodeError(self._obituary())
            self._answers[number] = answer
        line = json.dumps({"id": number, "command": command, **fields})
        assert self._process.stdin is not None
        # Not under the readers' lock: Node may have to be rid of its output before it takes more input. Should it have
        # ended, the answer says so.
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return answer

    def wait_for_event(self, what: str | Callable[[Event], bool], timeout: float = DEADLINE, **fields: Any) -> Event:
        """The first event, past ones included, of a name and with these fields, or that a function says yes to."""

        def wanted(event: Event) -> bool:
            named = what(event) if callable(what) else event["event"] == what
            return named and all(event.get(name) == value for name, value in fields.items())

        deadline = time.monotonic() + timeout
        looked = 0
        with self._changed:
            while True:
                for event in self.events[looked:]:
                    if wanted(event):
                        return event
                looked = len(self.events)
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = self._obituary() if self._ended else f"not within {timeout} s"
                    raise AssertionError(f"no event {what} {fields}: {why}; the last ones: {self.events[-20:]}")
                self._changed.wait(remaining)

    def named(self, event: str, **fields: Any) -> list[Event]:
        """The events so far of a name and with these fields."""
        with self._changed:
            return [
                one
                for one in self.events
                if one["event"] == event and all(one.get(name) == value for name, value in fields.items())
            ]

    def stop(self, timeout: float = 20.0) -> None:
        """End it as its user would: connections are closed, a job under way is left. Killed when that takes longer."""
        assert self._process.stdin is not None
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill -9: a crash of the program."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._process.__exit__(None, None, None)  # closes the pipes

    def stderr(self) -> str:
        """What it wrote to standard error: lost connections, and why it ended."""
        return "".join(self._errors)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message: Mapping[str, Any] = json.loads(line)
            with self._changed:
                if "event" in message:
                    self.events.append(dict(message))
                elif "error" in message:
                    self._answers.pop(message["id"]).set_exception(NodeError(message["error"]))
                else:
                    self._answers.pop(message["id"]).set_result(message["answer"])
                self._changed.notify_all()
        self._readers[0].join()  # the last words may come after the output's end
        with self._changed:
            self._ended = True
            for answer in self._answers.values():
                answer.set_exception(NodeError(self._obituary()))
            self._changed.notify_all()

    def _obituary(self) -> str:
        return f"{self.script} ended: {self.stderr()[-3000:]}"

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
