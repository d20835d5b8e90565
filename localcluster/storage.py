"""The default StorageClass: a claim becomes a folder of the node, by Rancher's local-path-provisioner.

It is what kind has, too. The folders are in the cluster's state, so that they go when the cluster goes; nothing keeps
a volume to its size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from localcluster.addons import CONTAINER_SECURITY, POD_SECURITY, RESOURCES

PROGRAMS = ("local-path-provisioner", "folder")
"""What its image holds: the provisioner, and what it runs on a node to make and remove a folder."""

_NAME = "local-path-provisioner"
_NAMESPACE = "kube-system"
_ACCOUNT = {"kind": "ServiceAccount", "name": _NAME, "namespace": _NAMESPACE}
_LABELS = {"app": _NAME}
_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]


def manifests(image: str, folder: Path) -> str:
    """Render everything as one stream of YAML documents; volumes are made in `folder`."""
    objects = [
        _storage_class(),
        _meta("v1", "ServiceAccount"),
        _role("ClusterRole", [(["nodes", "persistentvolumeclaims"], _READ), (["events"], ["create", "patch"])]),
        _binding("ClusterRole"),
        _role("Role", [(["configmaps", "pods/log"], ["get"]), (["pods"], ["get", "create", "delete"])]),
        _binding("Role"),
        {**_meta("v1", "ConfigMap"), "data": _configuration(image, folder)},
        _deployment(image),
    ]
    return yaml.safe_dump_all(objects, sort_keys=False)


def _meta(version: str, kind: str, *, cluster: bool = False) -> dict[str, Any]:
    place = {} if cluster else {"namespace": _NAMESPACE}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": _NAME, **place}}


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "rancher.io/local-path",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def _role(kind: str, core: list[tuple[list[str], list[str]]]) -> dict[str, Any]:
    rules = [{"apiGroups": [""], "resources": resources, "verbs": verbs} for resources, verbs in core]
    cluster = kind == "ClusterRole"
    if cluster:
        rules.append({"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": _READ})
        rules.append(
            {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": [*_READ, "create", "patch", "delete"]}
        )
    return {**_meta(f"{_RBAC}/v1", kind, cluster=cluster), "rules": rules}


def _binding(role: str) -> dict[str, Any]:
    return {
        **_meta(f"{_RBAC}/v1", f"{role}Binding", cluster=role == "ClusterRole"),
        "roleRef": {"apiGroup": _RBAC, "kind": role, "name": _NAME},
        "subjects": [_ACCOUNT],
    }


def _configuration(image: str, folder: Path) -> dict[str, str]:
    paths = [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(folder)]}]
    config = {"nodePathMap": paths, "setupCommand": "/folder", "teardownCommand": "/folder"}
    container = {
        "name": "helper-pod",  # whose log the provisioner reads
        "image": image,
        "imagePullPolicy": "Never",
        "securityContext": {
            # It has to remove what pods of any user have written.
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
            "readOnlyRootFilesystem": True,
        },
    }
    helper = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "folder"},
        "spec": {
            "priorityClassName": "system-node-critical",
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }
    return {"config.json": json.dumps(config), "helperPod.yaml": yaml.safe_dump(helper)}


def _deployment(image: str) -> dict[str, Any]:
    container = {
        "name": _NAME,
        "image": image,
        "imagePullPolicy": "Never",
        "args": [
            "start",
            "--config=/etc/config/config.json",
            "--helper-pod-file=/etc/config/helperPod.yaml",
            f"--configmap-name={_NAME}",
            f"--service-account-name={_NAME}",
            f"--namespace={_NAMESPACE}",
        ],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/config", "readOnly": True}],
        "resources": RESOURCES,
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        **_meta("apps/v1", "Deployment"),
        "spec": {
            "selector": {"matchLabels": _LABELS},
            "template": {
                "metadata": {"labels": _LABELS},
                "spec": {
                    "serviceAccountName": _NAME,
                    "priorityClassName": "system-cluster-critical",
                    "securityContext": POD_SECURITY,
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": _NAME}}],
                },
            },
        },
    }
