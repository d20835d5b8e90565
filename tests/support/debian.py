"""Programs that tests need and that come from Debian's packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_LOCK = Path("/tmp/claudejobs-tests-apt.lock")


def provide(package: str, look: Callable[[], T | None]) -> T:
    """What ``look`` finds, after the package was installed if need be; the test fails where that is impossible.

    Two test processes at once take turns, because apt-get does not wait for its lock.
    """
    found = look()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with _LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if look() is None:
                environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
                for command in (["apt-get", "update"], ["apt-get", "install", "-y", package]):
                    subprocess.run(command, check=True, capture_output=True, env=environment)
        found = look()
    if found is None:
        pytest.fail(f"this test needs the Debian package {package}: apt-get install {package}", pytrace=False)
    return found
