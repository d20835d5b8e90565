"""What the cluster itself runs as ordinary objects: DNS, and the API server's right to reach the kubelet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import yaml

from localcluster.network import DNS_SERVICE

_DNS_PORT = 5353
_LABELS = {"k8s-app": "kube-dns"}

# What the pods of the cluster's own parts have in common.
RESOURCES = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def corefile(forward_to: Sequence[str]) -> str:
    """Render CoreDNS's configuration; without `forward_to` it knows the cluster's names only."""
    forward = f"\n    forward . {' '.join(forward_to)}" if forward_to else ""
    return f""".:{_DNS_PORT} {{
    errors
    health :8080 {{
        lameduck 2s
    }}
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}{forward}
    cache 30
    loadbalance
}}
"""


def manifests(dns_image: str, forward_to: Sequence[str]) -> str:
    """Render everything as one stream of YAML documents, to be applied again whenever it changes."""
    config = corefile(forward_to)
    objects = [
        _kubelet_access(),
        _policy_role(),
        _binding(
            "system:kube-network-policies",
            "system:kube-network-policies",
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-network-policies"},
        ),
        _meta("v1", "ServiceAccount", "coredns", "kube-system"),
        _dns_role(),
        _binding(
            "system:coredns",
            "system:coredns",
            {"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"},
        ),
        {**_meta("v1", "ConfigMap", "coredns", "kube-system"), "data": {"Corefile": config}},
        _dns_deployment(dns_image, hashlib.sha256(config.encode()).hexdigest()[:16]),
        _dns_service(),
    ]
    return yaml.safe_dump_all(objects, sort_keys=False)


def _meta(version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place}}


def _binding(name: str, role: str, subject: dict[str, str]) -> dict[str, Any]:
    return {
        **_meta("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _kubelet_access() -> dict[str, Any]:
    """Let the API server fetch logs and open exec streams; the role is built in, its binding is not."""
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "kube-apiserver-kubelet-client"}
    return _binding("localcluster:apiserver-to-kubelet", "system:kubelet-api-admin", user)


def _policy_role() -> dict[str, Any]:
    """What the judge of NetworkPolicies follows."""
    return {
        **_meta("rbac.authorization.k8s.io/v1", "ClusterRole", "system:kube-network-policies"),
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
        ],
    }


def _dns_role() -> dict[str, Any]:
    return {
        **_meta("rbac.authorization.k8s.io/v1", "ClusterRole", "system:coredns"),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["services", "pods", "namespaces"],
                "verbs": ["list", "watch"],
            },
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }


def _dns_service() -> dict[str, Any]:
    ports = [
        {"name": name, "protocol": protocol, "port": 53, "targetPort": _DNS_PORT}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    return {
        **_meta("v1", "Service", "kube-dns", "kube-system"),
        "spec": {"clusterIP": DNS_SERVICE, "selector": _LABELS, "ports": ports},
    }


def _dns_deployment(image: str, config_hash: str) -> dict[str, Any]:
    container = {
        "name": "coredns",
        "image": image,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"containerPort": _DNS_PORT, "protocol": "UDP", "name": "dns"},
            {"containerPort": _DNS_PORT, "protocol": "TCP", "name": "dns-tcp"},
        ],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
        "resources": RESOURCES,
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 10},
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        **_meta("apps/v1", "Deployment", "coredns", "kube-system"),
        "spec": {
            "selector": {"matchLabels": _LABELS},
            "template": {
                # A changed configuration makes changed pods: CoreDNS then need not watch its file.
                "metadata": {"labels": _LABELS, "annotations": {"localcluster/config": config_hash}},
                "spec": {
                    "serviceAccountName": "coredns",
                    "priorityClassName": "system-cluster-critical",
                    "dnsPolicy": "Default",
                    "securityContext": POD_SECURITY,
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
                },
            },
        },
    }
