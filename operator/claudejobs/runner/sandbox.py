#!/usr/bin/env -S python3 -IS
"""Shuts the agent's process in, by the kernel's Landlock: what it may do to the runner, which is of the same user.

The CLI and everything it starts write to the workspace, the home and the temporary folder only: not to the
container's termination message, wherever it is. They see no memory, environment or open files of processes outside,
and send no signal there, so that nothing that the runner says can be forged. Landlock needs no privilege.

Run as a program, this takes the place of the CLI: it applies the rules to itself and becomes the CLI. It is loaded
without site-packages then, and by the runner for ``abi`` and ``launch``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "CLAUDEJOBS_SANDBOX"
"""Tells the program what to become and what it may write to; taken out of the environment by it."""

LEAST_ABI = 3
"""Linux 6.2: the first whose Landlock keeps a file from being truncated."""
SCOPES_ABI = 6
"""Linux 6.12: signals are kept inside."""

REFUSED = 126
"""Exit code when the rules cannot be applied: the agent does not run without them."""

# Of include/uapi/linux/landlock.h; the system calls have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 14))
_ALL_WRITES = _WRITE_FILE | _MAKE_AND_REMOVE | _TRUNCATE
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_PR_SET_NO_NEW_PRIVS = 38

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm")
"""What a process may write to below /dev; the termination message is there, too, and is not among them."""


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def abi() -> int:
    """The version of the kernel's Landlock; 0 when there is none, or the container runtime keeps it away."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except (OSError, AttributeError):
        return 0


def weakness(version: int) -> str | None:
    """What does not hold with this version of Landlock, for the job's author; ``None`` when all does."""
    if version < LEAST_ABI:
        return (
            f"Landlock is not available on this node (version {version}, needed is {LEAST_ABI}: Linux 6.2): the agent "
            "can send signals to the runner and overwrite the termination message"
        )
    if version < SCOPES_ABI:
        return (
            f"Landlock on this node (version {version}) does not keep signals in (needed is {SCOPES_ABI}: Linux 6.12): "
            "the agent can send signals to the runner"
        )
    return None


def launch(program: Path, writable: Sequence[Path]) -> tuple[Path, dict[str, str]]:
    """What to start in place of ``program``, and the environment variable that goes with it."""
    return Path(__file__), {VARIABLE: json.dumps([str(program), *map(str, writable)])}


def restrict(writable: Sequence[str]) -> None:
    """Apply the rules to this process and all that it will start, for good.

    Raises:
        OSError: the kernel does not take them.
    """
    version = abi()
    scopes = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= SCOPES_ABI else 0
    attributes = _Ruleset(fs=_ALL_WRITES, net=0, scoped=scopes)
    # Older kernels take a shorter structure, and refuse one whose unknown part is not zero.
    size = ctypes.sizeof(attributes) if scopes else 8
    rules = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    for path in (*writable, *(f"/dev/{device}" for device in DEVICES)):
        _allow(rules, path)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def _allow(rules: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    is_folder = Path(path).is_dir()
    beneath = _PathBeneath(_ALL_WRITES if is_folder else _WRITE_FILE | _TRUNCATE, descriptor)
    _call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), ctypes.byref(beneath), ctypes.c_uint32(0))
    os.close(descriptor)


def main() -> None:
    """Become the CLI, shut in."""
    program, *writable = json.loads(os.environ.pop(VARIABLE))
    try:
        restrict(writable)
    except OSError as error:
        sys.stderr.write(f"the agent cannot be shut in by Landlock: {error}\n")
        sys.exit(REFUSED)
    os.execv(program, [program, *sys.argv[1:]])  # noqa: S606 - a shell is not wanted


if __name__ == "__main__":
    main()
