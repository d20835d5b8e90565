"""The scripted model as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .kube import wait_for
from .operator import REPOSITORY


@contextmanager
def scripted_model(host: str, out: Path) -> Iterator[str]:
    """Serve it on a free port of an address of this machine; the context's value is its URL. What it prints goes to
    the file ``out``."""
    with out.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "images/scripted-model/scripted_model.py", "--host", host, "--port", "0"],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        port = wait_for(lambda: _port(out), "the scripted model prints its port")
        yield f"http://{host}:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _port(out: Path) -> str | None:
    digits = [word.rsplit(":", 1)[-1].strip("/ ") for word in out.read_text().split()]
    return next((d for d in digits if d.isdigit()), None)
