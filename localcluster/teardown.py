"""Removes a cluster, whatever state it is in: half made, running, or ended by force at any moment."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from localcluster import network, processes
from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import run

CGROUPS = Path("/sys/fs/cgroup")
# containerd is what the others' containers hang on, so it ends last.
_COMPONENTS = (
    "kubelet",
    "kube-network-policies",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
)
_REMOVING = "removing"
_PATIENCE = 2.0
"""Seconds that components get to end by themselves, for etcd to write its data down."""


def cgroups(settings: Settings) -> list[Path]:
    """List the control groups that hold this cluster's pods: one per hierarchy, or one in all (version 2)."""
    return [p for p in (CGROUPS / settings.identity, *CGROUPS.glob(f"*/{settings.identity}")) if p.is_dir()]


def create_cgroups(settings: Settings) -> None:
    """Make those control groups; the kubelet wants to find them."""
    if (CGROUPS / "cgroup.controllers").exists():
        hierarchies = [CGROUPS]
    else:
        hierarchies = [p for p in CGROUPS.iterdir() if p.is_dir() and not (p / "cgroup.controllers").exists()]
    for hierarchy in hierarchies:
        (hierarchy / settings.identity).mkdir(exist_ok=True)


def end_processes(settings: Settings) -> None:
    """End all processes of the cluster, recorded or not: components, shims, and what runs in containers."""
    pids = settings.state / "run"
    found = [handle for name in _COMPONENTS if (handle := processes.find(pids, name))]
    processes.end(found, _PATIENCE)
    shims = processes.with_argument(str(settings.containerd_socket))
    processes.end([*shims, *processes.in_cgroups(cgroups(settings))], seconds=0)
    if containerd := processes.find(pids, "containerd"):
        processes.end([containerd], _PATIENCE)
    # Pid files may be lost, but the network namespace is this cluster's alone, and so are its control groups.
    left = [
        *processes.in_network_namespace(network.namespace(settings)),
        *processes.in_cgroups(cgroups(settings)),
    ]
    processes.end(left, seconds=0)


def clear_node(settings: Settings) -> None:
    """Undo all that lives in the kernel: processes, mounts, control groups, interfaces, rules; files stay."""
    end_processes(settings)
    unmount_below(settings.state)
    _remove_strays(settings)
    shutil.rmtree(settings.state / "containerd" / "state", ignore_errors=True)
    shutil.rmtree(settings.state / "cni-data", ignore_errors=True)
    for cgroup in cgroups(settings):
        _remove_cgroup(cgroup)
    network.remove(settings, network.remembered(settings))


def _remove_strays(settings: Settings) -> None:
    """Remove the cluster's files from places that are fixed in the kubelet and in containerd."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(settings.state):
            link.unlink(missing_ok=True)
    home, results = settings.state / "containerd", Path("/var/lib/cni/results")
    sandboxes = {
        *(path.name for path in home.glob("root/io.containerd.grpc.v1.cri/sandboxes/*")),
        *(path.name for path in home.glob("state/io.containerd.runtime.v2.task/k8s.io/*")),
    }
    for sandbox in sandboxes:
        shim_socket(settings.containerd_socket, sandbox).unlink(missing_ok=True)
    for pattern in (f"{settings.identity}-*", *(f"*-{sandbox}-*" for sandbox in sandboxes)):
        for result in results.glob(pattern):
            result.unlink(missing_ok=True)


def was_cut(settings: Settings) -> bool:
    """Say whether a removal began and did not end: components may still run, but only to shut down."""
    return (settings.state / _REMOVING).exists()


def remove(settings: Settings) -> None:
    """Remove the cluster altogether.

    Raises LocalClusterError when something resists.
    """
    if settings.state.exists():
        (settings.state / _REMOVING).touch()
    clear_node(settings)
    if not settings.state.exists():
        return
    try:
        shutil.rmtree(settings.state)
    except OSError as error:
        raise LocalClusterError(
            f"{settings.state} cannot be removed: {error}; see who uses it and run again"
        ) from error


def shim_socket(containerd_socket: Path, sandbox: str) -> Path:
    """Name the socket of a pod's shim as containerd does: a hash, in one place for all its instances."""
    name = hashlib.sha256(f"{containerd_socket}/k8s.io/{sandbox}".encode()).hexdigest()
    return Path("/run/containerd/s") / name


def mounts_below(mountinfo: str, directory: Path) -> list[Path]:
    """Pick from the text of /proc/self/mountinfo the points at or below `directory`, the deepest first."""
    points = [_unescape(line.split()[4]) for line in mountinfo.splitlines() if line]
    below = [Path(point) for point in points if Path(point).is_relative_to(directory)]
    return sorted(below, key=lambda path: len(path.parts), reverse=True)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def unmount_below(directory: Path) -> None:
    """Unmount everything at or below `directory`, several layers on one point included."""
    for _ in range(10):
        points = mounts_below(Path("/proc/self/mountinfo").read_text(), directory.resolve())
        if not points:
            return
        for point in _unique(points):
            with suppress(LocalClusterError):
                run(["umount", "--lazy", point])
    raise LocalClusterError(f"mounts below {directory} cannot be removed: see `findmnt`, unmount them and run again")


def _unique(points: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(points))


def _remove_cgroup(root: Path) -> None:
    groups = [*(p for p in root.rglob("*") if p.is_dir()), root]
    for group in sorted(groups, key=lambda path: len(path.parts), reverse=True):
        for _ in range(50):
            try:
                group.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    break
                # The kernel lets go of ended processes a moment after they are gone.
                time.sleep(0.1)
            else:
                break
