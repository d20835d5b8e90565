"""What each component is started with: arguments and configuration files, rendered from the settings.

Pure: nothing here touches the machine. `all_components` is the list, in the order of starting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster import network
from localcluster.binaries import Binaries
from localcluster.network import API_PORT, DNS_SERVICE, SERVICES, Network
from localcluster.packages import CNI_PLUGINS
from localcluster.settings import Settings

PODS_PER_NODE = 200
PIDS_PER_POD = 1024
_ETCD_PORT = 2379


@dataclass(frozen=True)
class Component:
    """One process of the cluster."""

    name: str
    argv: tuple[str, ...]
    files: dict[Path, str]
    """Configuration to be there before it starts."""
    needs_api: bool = False
    """Whether it is started only when the API server answers; it then keeps nothing of its own, and can be started
    anew with other arguments while the cluster runs."""


def all_components(settings: Settings, net: Network, binaries: Binaries, pause_image: str) -> list[Component]:
    """Describe every process of the cluster."""
    bin_dir = binaries.components
    return [
        containerd(settings, net, pause_image),
        etcd(settings, bin_dir),
        apiserver(settings, net, bin_dir),
        controller_manager(settings, net, bin_dir),
        scheduler(settings, bin_dir),
        kubelet(settings, net, bin_dir),
        proxy(settings, net, bin_dir),
        network_policies(settings, binaries.netpol),
    ]


def _flags(**flags: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def etcd(settings: Settings, bin_dir: Path) -> Component:
    """Describe etcd: it listens on the node's loopback, for clients its own authority knows."""
    pki, client, peer = settings.pki, f"https://127.0.0.1:{_ETCD_PORT}", f"https://127.0.0.1:{_ETCD_PORT + 1}"
    flags = _flags(
        name="node",
        data_dir=settings.state / "etcd",
        listen_client_urls=client,
        advertise_client_urls=client,
        listen_peer_urls=peer,
        initial_advertise_peer_urls=peer,
        initial_cluster=f"node={peer}",
        cert_file=pki / "etcd.crt",
        key_file=pki / "etcd.key",
        trusted_ca_file=pki / "etcd-ca.crt",
        client_cert_auth="true",
        peer_cert_file=pki / "etcd.crt",
        peer_key_file=pki / "etcd.key",
        peer_trusted_ca_file=pki / "etcd-ca.crt",
        peer_client_cert_auth="true",
        # The data need not outlive a power cut, and every API write waits for this disk otherwise.
        unsafe_no_fsync="true",
        log_level="warn",
    )
    return Component("etcd", (str(bin_dir / "etcd"), *flags), {})


def apiserver(settings: Settings, net: Network, bin_dir: Path) -> Component:
    """Describe the API server."""
    pki, policy = settings.pki, settings.state / "audit-policy.yaml"
    flags = _flags(
        etcd_servers=f"https://127.0.0.1:{_ETCD_PORT}",
        etcd_cafile=pki / "etcd-ca.crt",
        etcd_certfile=pki / "apiserver-etcd-client.crt",
        etcd_keyfile=pki / "apiserver-etcd-client.key",
        bind_address=net.node_address,
        advertise_address=net.node_address,
        secure_port=API_PORT,
        tls_cert_file=pki / "apiserver.crt",
        tls_private_key_file=pki / "apiserver.key",
        client_ca_file=pki / "ca.crt",
        anonymous_auth="false",
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        service_account_key_file=pki / "service-account.pub",
        service_account_signing_key_file=pki / "service-account.key",
        service_cluster_ip_range=SERVICES,
        kubelet_certificate_authority=pki / "ca.crt",
        kubelet_client_certificate=pki / "apiserver-kubelet-client.crt",
        kubelet_client_key=pki / "apiserver-kubelet-client.key",
        kubelet_preferred_address_types="InternalIP",
        audit_policy_file=policy,
        audit_log_path=settings.audit_log,
        # Tests count from a position in this file, so it is not cut while they run.
        audit_log_maxsize=2048,
        audit_log_maxbackup=1,
        allow_privileged="true",
        profiling="false",
    )
    return Component("kube-apiserver", (str(bin_dir / "kube-apiserver"), *flags), {policy: _yaml(audit_policy())})


def audit_policy() -> dict[str, Any]:
    """Render what the audit log gets: one line for each finished write, none for reads."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
            {"level": "None"},
        ],
    }


def controller_manager(settings: Settings, net: Network, bin_dir: Path) -> Component:
    """Describe the controller manager, at a pace that tests with a thousand jobs do not have to wait for."""
    pki, kubeconfig = settings.pki, settings.state / "controller-manager.kubeconfig"
    flags = _flags(
        kubeconfig=kubeconfig,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        bind_address="127.0.0.1",
        use_service_account_credentials="true",
        service_account_private_key_file=pki / "service-account.key",
        root_ca_file=pki / "ca.crt",
        cluster_signing_cert_file=pki / "ca.crt",
        cluster_signing_key_file=pki / "ca.key",
        cluster_cidr=net.pods,
        service_cluster_ip_range=SERVICES,
        leader_elect="false",
        kube_api_qps=200,
        kube_api_burst=400,
    )
    return Component("kube-controller-manager", (str(bin_dir / "kube-controller-manager"), *flags), {}, True)


def scheduler(settings: Settings, bin_dir: Path) -> Component:
    """Describe the scheduler."""
    kubeconfig, config = settings.state / "scheduler.kubeconfig", settings.state / "scheduler.yaml"
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 1000, "burst": 2000},
        "leaderElection": {"leaderElect": False},
    }
    flags = _flags(
        config=config,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        bind_address="127.0.0.1",
    )
    return Component("kube-scheduler", (str(bin_dir / "kube-scheduler"), *flags), {config: _yaml(content)}, True)


def kubelet(settings: Settings, net: Network, bin_dir: Path) -> Component:
    """Describe the kubelet."""
    config = settings.state / "kubelet.yaml"
    flags = _flags(
        config=config,
        kubeconfig=settings.state / "kubelet.kubeconfig",
        hostname_override=settings.node,
        node_ip=net.node_address,
        root_dir=settings.state / "kubelet",
        cert_dir=settings.pki,
    )
    return Component(
        "kubelet", (str(bin_dir / "kubelet"), *flags), {config: _yaml(kubelet_config(settings, net))}, True
    )


def kubelet_config(settings: Settings, net: Network) -> dict[str, Any]:
    """Render the kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": net.node_address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(settings.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(settings.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(settings.pki / "kubelet.key"),
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": str(settings.state / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{settings.containerd_socket}",
        # A control group of its own: a kubelet removes pod groups it does not know, another cluster's too.
        "cgroupRoot": f"/{settings.identity}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "podLogsDir": str(settings.state / "pods"),
        "maxPods": PODS_PER_NODE,
        # A pod that forks without end is stopped there, and nothing beside it.
        "podPidsLimit": PIDS_PER_POD,
        # A volume that is too full is seen within seconds, not the default's minute.
        "volumeStatsAggPeriod": "5s",
        "serializeImagePulls": False,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        # The disk is the developer's: no early eviction, and no removal of images that nobody can pull again.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
    }


def proxy(settings: Settings, net: Network, bin_dir: Path) -> Component:
    """Describe kube-proxy, whose rules live in the node's network namespace."""
    config = settings.state / "proxy.yaml"
    content = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": net.pods,
        "hostnameOverride": settings.node,
        "clientConnection": {"kubeconfig": str(settings.state / "proxy.kubeconfig")},
        # Limits of connection tracking are the machine's own business.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nodePortAddresses": ["primary"],
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    }
    return Component("kube-proxy", (str(bin_dir / "kube-proxy"), f"--config={config}"), {config: _yaml(content)}, True)


def network_policies(settings: Settings, bin_dir: Path) -> Component:
    """Describe the judge of the packets that `network.divert` hands over."""
    flags = _flags(
        kubeconfig=settings.state / "network-policies.kubeconfig",
        hostname_override=settings.node,
        nfqueue_id=network.POLICY_QUEUE,
    )
    return Component("kube-network-policies", (str(bin_dir / "kube-network-policies"), *flags), {}, True)


def containerd(settings: Settings, net: Network, pause_image: str) -> Component:
    """Describe containerd, apart from the system's in every place it writes to."""
    config, cni = settings.state / "containerd.toml", settings.state / "cni" / "10-pods.conflist"
    files = {
        config: containerd_config(settings, pause_image),
        cni: json.dumps(network.cni(settings.identity, net, settings.state / "cni-data")),
    }
    return Component("containerd", ("containerd", "--config", str(config)), files)


def containerd_config(settings: Settings, pause_image: str) -> str:
    """Render containerd's configuration."""
    home = settings.state / "containerd"
    # json.dumps writes a TOML basic string as well.
    text = {
        "root": json.dumps(str(home / "root")),
        "state": json.dumps(str(home / "state")),
        "socket": json.dumps(str(settings.containerd_socket)),
        "pause": json.dumps(pause_image),
        "plugins": json.dumps(str(CNI_PLUGINS)),
        "cni": json.dumps(str(settings.state / "cni")),
        "runc": json.dumps(str(home / "runc")),
    }
    return """version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", \
"io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = {socket}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {pause}
# Root in a container cannot lower its processes' OOM score; without this no pod starts there.
restrict_oom_score_adj = true
# Pods' network namespaces below the state directory, where they are found again when the cluster is removed.
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {cni}

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = {runc}
SystemdCgroup = false
""".format(**text)


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False)
