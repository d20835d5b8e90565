"""Running other programs, and the files that more than one command may want at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from localcluster.progress import say
from localcluster.settings import LocalClusterError

_TAIL = 15
_END_SECONDS = 10
"""How long a program that is asked to end has for it."""


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    `env` is added to the environment; `timeout` is in seconds.
    Raises LocalClusterError, with the last lines it printed, when it fails, is missing or takes too long.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {}),  # type: ignore[call-overload]
        )
    except FileNotFoundError as error:
        raise LocalClusterError(f"{command[0]} is not installed: install it and run again") from error
    except subprocess.TimeoutExpired as error:
        raise LocalClusterError(f"{' '.join(command)} took longer than {timeout:.0f} s") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_TAIL:])
        raise LocalClusterError(f"{' '.join(command)} failed with status {done.returncode}:\n{tail}")
    return str(done.stdout)


@contextmanager
def running(
    argv: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a program run that writes to `log`, until the block is left; the kernel ends it with this process, however
    this one ends.

    Where setpriv is missing, a killed caller leaves it behind. `env` is added to the environment.
    """
    bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*bound, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(env or {})},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def assert_running(name: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise LocalClusterError, with the end of the log, when a program has ended that should run."""
    if process.poll() is not None:
        raise LocalClusterError(f"{name} ended:\n{log.read_text(errors='replace')[-3000:]}")


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Say whether a program runs and ends with status 0, whatever it prints."""
    try:
        run(argv)
    except LocalClusterError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: other processes that ask for it wait until the block is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for another command that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    partial.rename(path)


def write_if_changed(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file unless it holds just that."""
    if not path.exists() or path.read_text() != content:
        write(path, content, mode)


def wait_until(what: str, check: Callable[[], object], *, seconds: float, hint: str = "", pause: float = 0.2) -> None:
    """Call `check` until it returns something true.

    Raises LocalClusterError naming `what`, and `hint`, when that takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise LocalClusterError(f"{what}: not so after {seconds:.0f} s. {hint}".rstrip())
        time.sleep(pause)
