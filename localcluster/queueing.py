"""Kueue, which admits pods to quotas, for one namespace of a cluster that others use at the same time.

Kueue (https://kueue.sigs.k8s.io) is a process beside the cluster, as kwok is. Its webhooks are called for the pods of
the one namespace only, and the API server goes on without them when they do not answer.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from localcluster import binaries, pki
from localcluster.guests import remove
from localcluster.settings import LocalClusterError, from_environment
from localcluster.shell import assert_running, locked, run, running, wait_until, write
from localcluster.targets import Cluster

_GROUP = "kueue.x-k8s.io"
_NAME = "claudejobs-kueue"
_FINALIZED = (f"workloads.{_GROUP}", f"localqueues.{_GROUP}", f"clusterqueues.{_GROUP}", f"resourceflavors.{_GROUP}")
_CERTIFICATES = Path("etc/kueue/metrics/certs")
"""Below the root: where Kueue looks for the certificate of its metrics, even when it serves none."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Kueue:
    """What runs."""

    log: Path
    """What Kueue says."""
    process: subprocess.Popen[bytes]


@contextmanager
def kueue(cluster: Cluster, namespace: str) -> Iterator[Kueue]:
    """Have Kueue manage the pods of a namespace that have the label of a queue, until the block is left; then nothing
    of it is left, its managed pods included.

    A cluster has one Kueue at a time: a second caller waits for the first to end.

    Raises:
        LocalClusterError: Kueue cannot be built, does not start, or the cluster does not reach this machine.
    """
    if cluster.gateway is None:
        raise LocalClusterError("Kueue's webhooks need a cluster that reaches this machine: use CLUSTER=local")
    cache = from_environment().cache
    programs = binaries.build(binaries.kueue(), cache / "bin")
    definitions = yaml.dump_all(map(_definition, sorted(programs.glob(f"{_GROUP}_*.yaml"))), Dumper=yaml.CSafeDumper)
    kubectl = cluster.kubectl
    with locked(cache / "kueue.lock"), tempfile.TemporaryDirectory(prefix="kueue-") as name:
        folder, log = Path(name), Path(name) / "log"
        _remove(kubectl, definitions)  # what a cut run left
        try:
            run([*kubectl, "apply", "--server-side", "-f", "-"], stdin=definitions)
            run([*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", "-"], stdin=definitions)
            authority = _certify(folder / _CERTIFICATES, cluster.gateway)
            webhooks, health = _free_ports(cluster.gateway)
            write(folder / "config.yaml", yaml.safe_dump(_configuration(namespace, cluster.gateway, webhooks, health)))
            command: list[str | Path] = [
                programs / "kueue",
                "--config",
                folder / "config.yaml",
                "--kubeconfig",
                cluster.kubeconfig,
            ]
            with running([*_over_etc(folder / "etc"), *command], log) as process:
                address = (cluster.gateway, health)
                wait_until("Kueue is ready", lambda: _ready(address, process, log), seconds=120)
                manifests = list(yaml.safe_load_all((programs / "manifests.yaml").read_text()))
                url = f"https://{cluster.gateway}:{webhooks}"
                run(
                    [*kubectl, "create", "-f", "-"],
                    stdin=yaml.safe_dump_all([_bound(one, url, authority, namespace) for one in manifests if one]),
                )
                yield Kueue(log, process)
        finally:
            _remove(kubectl, definitions)


def _definition(path: Path) -> Json:
    """A definition with the version that is stored alone: the others would need Kueue to convert."""
    definition: Json = yaml.load(path.read_text(), yaml.CSafeLoader)
    definition["spec"]["versions"] = [one for one in definition["spec"]["versions"] if one["storage"]]
    return definition


def _certify(directory: Path, address: str) -> bytes:
    """Make a certificate for a server at the address; returns that of its authority."""
    authority = pki.new_authority(_NAME)
    certificate, key = pki.issue(authority, pki.Identity(_NAME, hosts=(address,)))
    write(directory / "tls.crt", certificate)
    write(directory / "tls.key", key)
    return authority.certificate.public_bytes(Encoding.PEM)


def _free_ports(address: str) -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((address, 0))
        other.bind((address, 0))
        return one.getsockname()[1], other.getsockname()[1]


def _over_etc(layer: Path) -> list[str]:
    """What starts a program that sees these files in /etc, and that nobody else does."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'
    return ["unshare", *rights, "--mount", "sh", "-c", script, str(layer)]


def _configuration(namespace: str, address: str, webhooks: int, health: int) -> Json:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": f"{address}:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": address, "port": webhooks, "certDir": f"/{_CERTIFICATES}"},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["pod"]},
        "managedJobsNamespaceSelector": _only(namespace),
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False, "TopologyAwareScheduling": False},
    }


def _only(namespace: str) -> Json:
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _bound(manifest: Json, url: str, authority: bytes, namespace: str) -> Json:
    """The webhooks for pods and for Kueue's own objects, called at this address and for this namespace."""
    webhooks = []
    for webhook in manifest["webhooks"]:
        path = webhook["clientConfig"]["service"]["path"]
        if "kueue-x-k8s-io" in path or path.endswith("--v1-pod"):
            client = {"url": f"{url}{path}", "caBundle": base64.b64encode(authority).decode()}
            limits = {"failurePolicy": "Ignore", "timeoutSeconds": 10, "namespaceSelector": _only(namespace)}
            webhooks.append({**webhook, "clientConfig": client, **limits})
    return {**manifest, "metadata": {"name": _NAME}, "webhooks": webhooks}


def _ready(address: tuple[str, int], process: subprocess.Popen[bytes], log: Path) -> bool:
    assert_running("Kueue", process, log)
    connection = HTTPConnection(*address, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _remove(kubectl: Sequence[str], definitions: str) -> None:
    for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
        run([*kubectl, "delete", kind, _NAME, "--ignore-not-found"])
    remove(kubectl, definitions, _FINALIZED, ["pods", "-l", f"{_GROUP}/managed=true"])
