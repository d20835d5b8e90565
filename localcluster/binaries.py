"""Builds the cluster's programs from the Go modules beside this file, once per state of their sources."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster.progress import in_parallel, step
from localcluster.settings import HELM_VERSION, KUBERNETES_VERSION, LocalClusterError
from localcluster.shell import locked, run

HERE = Path(__file__).resolve().parent
COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
_OLDEST_GO = (1, 26)
_KEPT_BUILDS = 3


@dataclass(frozen=True)
class Binaries:
    """Where the built programs are."""

    components: Path
    """Directory of a link for each of COMPONENTS."""
    tools: Path
    """Directory of helm, coredns and pause."""
    netpol: Path
    """Directory of kube-network-policies."""


@dataclass(frozen=True)
class Module:
    """One Go module and what to make of it."""

    directory: Path
    ldflags: str
    packages: tuple[str, ...]
    title: str
    links: tuple[str, ...] = ()
    """Further names of the one program built, for programs that look at their own name."""
    files: tuple[tuple[str, str], ...] = ()
    """Modules that it needs, and patterns of files of theirs to keep beside the programs."""

    def key(self) -> str:
        """Hash what decides the outcome of a build."""
        digest = hashlib.sha256(f"{self.ldflags} {self.packages} {self.links}{self.files or ''}".encode())
        for path in sorted(p for p in self.directory.rglob("*") if p.suffix in (".go", ".mod", ".sum")):
            digest.update(f"{path.relative_to(self.directory)}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def kubernetes() -> Module:
    """Describe the module of every Kubernetes component."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = {
        "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
    }
    return Module(
        HERE / "binary",
        " ".join(["-s -w", *(f"-X {name}={value}" for name, value in version.items())]),
        (".",),
        f"building Kubernetes {KUBERNETES_VERSION} (minutes, once)",
        COMPONENTS,
    )


def tools() -> Module:
    """Describe the module of helm and of what runs inside system pods."""
    ldflags = f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM_VERSION}"
    return Module(
        HERE / "tools",
        ldflags,
        ("./coredns", "./helm", "./pause"),
        "building helm and CoreDNS (minutes, once)",
    )


def kwok() -> Module:
    """Describe the module of kwok, which plays nodes and their pods; only what asks for it pays for its build."""
    return Module(
        HERE / "kwok",
        "-s -w",
        ("sigs.k8s.io/kwok/cmd/kwok",),
        "building kwok (two minutes, once)",
    )


def karpenter() -> Module:
    """Describe the module of Karpenter with the provider whose nodes kwok plays, and of its resources' definitions."""
    return Module(
        HERE / "karpenter",
        "-s -w",
        ("./crds", "sigs.k8s.io/karpenter/kwok"),
        "building Karpenter (two minutes, once)",
    )


def kueue() -> Module:
    """Describe the module of Kueue, with the definitions of its resources and webhooks."""
    name = "sigs.k8s.io/kueue"
    return Module(
        HERE / "kueue",
        "-s -w",
        (f"{name}/cmd/kueue",),
        "building Kueue (six minutes, once)",
        files=((name, "config/components/crd/bases/*.yaml"), (name, "config/components/webhook/manifests.yaml")),
    )


def provisioner() -> Module:
    """Describe the module of what makes volumes for claims."""
    return Module(
        HERE / "provisioner",
        "-s -w",
        ("./folder", "github.com/rancher/local-path-provisioner"),
        "building local-path-provisioner (a minute or two, once)",
    )


def chart_tools() -> Module:
    """Describe the module of what checks rendered charts: kubeconform, and Prometheus' own reader of rules."""
    return Module(
        HERE / "charttools",
        "-s -w",
        ("./rules", "github.com/yannh/kubeconform/cmd/kubeconform"),
        "building kubeconform (a minute, once)",
    )


def helm_unittest() -> Module:
    """Describe the module of helm-unittest, which runs the suites in charts: it is of helm 3, `tools` of helm 4."""
    return Module(
        HERE / "helmunittest",
        "-s -w",
        ("github.com/helm-unittest/helm-unittest/cmd/helm-unittest",),
        "building helm-unittest (a minute or two, once)",
    )


def netpol() -> Module:
    """Describe the module that enforces NetworkPolicies: apart from `tools`, whose libraries are newer."""
    return Module(
        HERE / "netpol",
        "-s -w",
        (".",),
        "building kube-network-policies (minutes, once)",
        ("kube-network-policies",),
    )


def ensure(cache: Path) -> Binaries:
    """Return the programs, building what the cache does not hold.

    Raises LocalClusterError when there is no Go toolchain to build with, or a build fails.
    """
    places: dict[str, Path] = {}

    def make(name: str, module: Module) -> Callable[[], None]:
        def action() -> None:
            places[name] = build(module, cache / "bin")

        return action

    in_parallel(make("components", kubernetes()), make("tools", tools()), make("netpol", netpol()))
    return Binaries(places["components"], places["tools"], places["netpol"])


def build(module: Module, root: Path) -> Path:
    """Return the directory below `root` that holds what `module` builds, filling it if need be."""
    place = root / f"{module.directory.name}-{module.key()}"
    if place.is_dir():
        return place
    # Two commands may come here at once; the second finds the work done when it gets the lock.
    with locked(root / f"{module.directory.name}.lock"):
        if not place.is_dir():
            _check_go()
            with step(module.title):
                _compile(module, place)
            _prune(root, module.directory.name, keep=place)
    return place


def _compile(module: Module, place: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=place.parent))
    try:
        output = work / "localcluster" if module.links else f"{work}/"
        environment = {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
        run(
            [
                "go",
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags",
                module.ldflags,
                "-o",
                output,
                *module.packages,
            ],
            cwd=module.directory,
            env=environment,
        )
        for name, pattern in module.files:
            source = Path(
                run(["go", "list", "-m", "-f", "{{.Dir}}", name], cwd=module.directory, env=environment).strip()
            )
            for path in source.glob(pattern):
                (work / path.name).write_bytes(path.read_bytes())
        for name in module.links:
            (work / name).symlink_to("localcluster")
        work.chmod(0o755)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_go() -> None:
    wanted = ".".join(map(str, _OLDEST_GO))
    if shutil.which("go") is None:
        raise LocalClusterError(
            f"Go {wanted} or newer is needed to build the cluster's programs and is not on PATH: install it, "
            "or use a Docker daemon with CLUSTER=kind"
        )
    found = re.search(r"go(\d+)\.(\d+)", run(["go", "env", "GOVERSION"], cwd=HERE.parent))
    if found is None or (int(found[1]), int(found[2])) < _OLDEST_GO:
        raise LocalClusterError(
            f"Go {wanted} or newer is needed to build the cluster's programs, found "
            f"{found[0] if found else 'an unknown version'}: install a newer one"
        )


def _prune(root: Path, name: str, keep: Path) -> None:
    """Remove all but the newest builds; a running cluster keeps its files open and is not harmed."""
    builds = sorted(root.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[_KEPT_BUILDS:]:
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)


def link_tools(binaries: Binaries, directory: Path) -> None:
    """Make `directory` hold kubectl and helm alone, so that it can lead a PATH."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, source in (("kubectl", binaries.components / "kubectl"), ("helm", binaries.tools / "helm")):
        link = directory / name
        if link.is_symlink() and Path(os.readlink(link)) == source:  # noqa: PTH115 - resolve() would lose kubectl's name
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(source)
