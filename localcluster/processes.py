"""Processes that outlive the command that started them, and are recognised for certain by the next one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localcluster.shell import write

_LARGEST_LOG = 64 * 2**20


@dataclass(frozen=True)
class Handle:
    """A process by its id and its start time: together they never name another process by accident."""

    pid: int
    start: int
    """In clock ticks after boot, as /proc has it."""

    def alive(self) -> bool:
        """Say whether this very process still runs; one that only waits to be collected does not."""
        return start_time(self.pid) == self.start


def start_time(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Read when a process started, in clock ticks after boot; None when there is no such process running."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may itself hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _pidfile(directory: Path, name: str) -> Path:
    return directory / f"{name}.json"


def find(directory: Path, name: str) -> Handle | None:
    """Return the process that `start` recorded under `name`, if it still runs."""
    try:
        recorded = json.loads(_pidfile(directory, name).read_text())
        handle = Handle(int(recorded["pid"]), int(recorded["start"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return handle if handle.alive() else None


def start(directory: Path, name: str, argv: Sequence[str | Path], log: Path, cwd: Path) -> None:
    """Start a program in a session of its own, output appended to `log`, identity kept in `directory`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LARGEST_LOG:
        log.rename(log.with_name(f"{log.name}.1"))
    # The shell goes away at once, so the program is init's child: whoever called this need not collect it.
    background = subprocess.run(
        [
            "sh",
            "-c",
            'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!',
            "sh",
            str(log),
            *map(str, argv),
        ],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
        cwd=cwd,
        start_new_session=True,
        env={"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "HOME": str(cwd)},
    )
    pid = int(background.stdout)
    write(_pidfile(directory, name), json.dumps({"pid": pid, "start": start_time(pid) or 0}))


def end(handles: Iterable[Handle], seconds: float) -> None:
    """End processes: ask all, wait up to `seconds` (0 does not ask), then force those that are left."""
    left = [handle for handle in handles if handle.alive()]
    for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10.0)):
        if sign is signal.SIGTERM and not seconds:
            continue
        for handle in left:
            with suppress(ProcessLookupError):
                os.kill(handle.pid, sign)
        deadline = time.monotonic() + patience
        while (left := [handle for handle in left if handle.alive()]) and time.monotonic() < deadline:
            time.sleep(0.05)


def everyone() -> list[Handle]:
    """List all processes of the machine."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [Handle(pid, start) for pid in pids if (start := start_time(pid)) is not None]


def in_network_namespace(namespace: Path) -> list[Handle]:
    """List the processes whose network namespace is the one mounted there."""
    try:
        wanted = namespace.stat()
    except OSError:
        return []
    return [handle for handle in everyone() if _same_namespace(handle.pid, wanted)]


def _same_namespace(pid: int, wanted: os.stat_result) -> bool:
    try:
        found = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def with_argument(argument: str) -> list[Handle]:
    """List the processes that have exactly this word on their command line."""
    found = []
    for handle in everyone():
        try:
            words = Path(f"/proc/{handle.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words:
            found.append(handle)
    return found


def in_cgroups(cgroups: Iterable[Path]) -> list[Handle]:
    """List the processes in control groups and all groups below them."""
    pids: set[int] = set()
    for cgroup in cgroups:
        for listing in cgroup.rglob("cgroup.procs"):
            with suppress(OSError):
                pids.update(int(pid) for pid in listing.read_text().split())
    return [Handle(pid, start) for pid in pids if pid and (start := start_time(pid)) is not None]
