"""The Debian packages that the local cluster stands on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from localcluster.progress import step
from localcluster.settings import LocalClusterError
from localcluster.shell import run

CNI_PLUGINS = Path("/usr/lib/cni")

# What must be there -> the package that brings it. An absolute path is looked for as a file, a name on PATH.
TO_RUN = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    f"{CNI_PLUGINS}/ptp": "containernetworking-plugins",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables-restore": "iptables",
    "nsenter": "util-linux",
}
TO_BUILD_IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}


def missing(needs: dict[str, str]) -> list[str]:
    """Name the packages, sorted, without which something in `needs` is not there."""
    return sorted({package for program, package in needs.items() if not _present(program)})


def _present(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def ensure(needs: dict[str, str]) -> None:
    """Install what is missing from `needs`.

    Raises LocalClusterError when something is missing and cannot be installed from here.
    """
    packages = missing(needs)
    if not packages:
        return
    listed = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise LocalClusterError(f"missing: {listed} (Debian's package names): install them by your system's own means")
    if os.geteuid() != 0:
        raise LocalClusterError(f"missing: {listed}: run `sudo apt-get install {listed}`, or this command as root")
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    with step(f"installing {listed}"):
        run([*apt, "update"])
        run(
            [*apt, "install", "-y", "--no-install-recommends", *packages],
            env={"DEBIAN_FRONTEND": "noninteractive"},
        )
    if still := missing(needs):
        raise LocalClusterError(f"{' '.join(still)} installed, but what was needed from there is still not found")
