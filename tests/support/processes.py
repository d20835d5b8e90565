"""The processes of a pod, as the machine sees them that the pod's node is on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PodProcess:
    """One process. ``argv`` is its command line."""

    pid: int
    parent: int
    argv: tuple[str, ...]

    def kill(self) -> None:
        """Kill -9."""
        os.kill(self.pid, signal.SIGKILL)


def processes_of(pod: dict[str, Any]) -> list[PodProcess]:
    """The living processes of all containers of a pod, found by their control group, which names the pod's UID."""
    uid = pod["metadata"]["uid"]
    names = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at, and a zombie has no command line.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and any(name in (entry / "cgroup").read_text() for name in names):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                argv = tuple((entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
                if argv:
                    found.append(PodProcess(int(entry.name), parent, argv))
    return found


def _one(pod: dict[str, Any], wanted: Callable[[PodProcess], bool]) -> PodProcess | None:
    return next((process for process in processes_of(pod) if wanted(process)), None)


def agent_of(pod: dict[str, Any]) -> PodProcess | None:
    """The agent's CLI, if it runs."""
    return _one(pod, lambda process: process.argv[0].endswith("/claude"))


def runner_of(pod: dict[str, Any]) -> PodProcess | None:
    """The runner, if it runs."""
    return _one(pod, lambda process: process.argv[0].endswith("/python") and "claudejobs.runner" in process.argv)


def sleeper_of(pod: dict[str, Any]) -> PodProcess | None:
    """The ``sleep`` of a tool, if one runs."""
    return _one(pod, lambda process: process.argv[0] == "sleep")


def shim_of(pod: dict[str, Any]) -> PodProcess | None:
    """The containerd shim, which is the parent of each container's first process, if it runs."""
    init = _one(pod, lambda process: process.argv[0].endswith("/tini"))
    if init is None:
        return None
    argv = tuple(Path(f"/proc/{init.parent}/cmdline").read_bytes().decode().split("\0")[:-1])
    assert "containerd-shim" in argv[0], argv
    return PodProcess(init.parent, 0, argv)
