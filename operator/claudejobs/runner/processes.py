"""Finding and ending everything that the agent started.

The CLI's children outlive it: a shell command goes on after its CLI was killed, and the pod would not end, or
a second CLI would run beside it. The runner makes itself the reaper of all its descendants, so none can leave
the tree, and ends them by walking /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process; False where the kernel refuses."""
    try:
        return int(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def hide() -> bool:
    """Keep this process's memory, environment and open files from others of the same user; False where refused."""
    try:
        return int(ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def _table() -> dict[int, tuple[int, str]]:
    """Each process's parent and state letter."""
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command's name is in parentheses and may hold anything; the fields follow the last one.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                table[int(entry.name)] = (int(fields[1]), fields[0])
    return table


def descendants(root: int | None = None) -> list[int]:
    """The living processes below ``root`` (this process by default); zombies are not living."""
    table = _table()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], list(children.get(root or os.getpid(), []))
    while todo:
        pid = todo.pop()
        todo.extend(children.get(pid, []))
        if table[pid][1] not in "ZX":
            found.append(pid)
    return found


async def terminate_descendants(until: float) -> list[int]:
    """SIGTERM to everything below this process, once each, until nothing of it lives; those still alive at ``until``,
    a time of ``time.monotonic``. Reading what they say goes on meanwhile."""
    told: set[int] = set()
    while (living := descendants()) and time.monotonic() < until:
        for pid in set(living) - told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        told.update(living)
        await asyncio.sleep(0.05)
    return living


def kill_descendants(timeout_seconds: float = 1.5) -> list[int]:
    """SIGKILL the whole tree below this process until nothing of it lives; those still alive at the end.

    Walks again after each round, as a process may fork between the walk and the kill.
    """
    deadline = time.monotonic() + timeout_seconds
    while living := descendants():
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return living
        time.sleep(0.01)
    return []


class ZombieReaper:
    """Collects the exit status of orphans that became our children.

    A child is collected when it was a zombie at two calls in a row: the CLI's own exit status is wanted by
    the SDK, which takes it within milliseconds.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def sweep(self) -> None:
        """Collect; call every few seconds."""
        me = os.getpid()
        zombies = {pid for pid, (parent, state) in _table().items() if parent == me and state == "Z"}
        for pid in zombies & self._seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies - self._seen
