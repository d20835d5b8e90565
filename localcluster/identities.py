"""Who is who in a cluster: certificates of its components, and the kubeconfigs that carry them."""

from __future__ import annotations

from localcluster import pki
from localcluster.network import API_SERVICE, Network
from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import write_if_changed


def prepare(settings: Settings, net: Network) -> None:
    """Make what is missing.

    Raises LocalClusterError when the cluster that is there cannot go on with its certificates.
    """
    servers = pki.servers(settings.node, net.node_address, net.gateway, API_SERVICE)
    pki.add_clients(settings.pki)
    if not pki.usable(settings.pki, [*pki.CLIENTS, *servers, "etcd", "apiserver-etcd-client"]):
        if (settings.state / "etcd").exists():
            raise LocalClusterError("its certificates are incomplete or expire soon")
        pki.create(settings.pki, servers)
    for client, path in {
        "admin": settings.kubeconfig,
        "kubelet": settings.state / "kubelet.kubeconfig",
        "controller-manager": settings.state / "controller-manager.kubeconfig",
        "scheduler": settings.state / "scheduler.kubeconfig",
        "proxy": settings.state / "proxy.kubeconfig",
        "network-policies": settings.state / "network-policies.kubeconfig",
    }.items():
        write_if_changed(path, pki.kubeconfig(settings.pki, client, net.server, settings.name))
