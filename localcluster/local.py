"""The cluster without Docker: starts what is not running, in the right order, and knows when it works."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

from localcluster import addons, binaries, identities, images, network, packages, processes, storage, teardown
from localcluster.components import Component, all_components
from localcluster.network import DNS_SERVICE, Network
from localcluster.oci import scratch_image
from localcluster.progress import in_parallel, say, step
from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import locked, run, succeeds, wait_until, write, write_if_changed
from localcluster.targets import Cluster, Row

_STARTED_BEFORE_API = ("etcd", "kube-apiserver")


class ComponentEndedError(LocalClusterError):
    """A component ended while something was waited for that needs it."""


class LocalCluster:
    """A cluster of real components on this machine, as root."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def up(self) -> Cluster:
        """Make the cluster, or restart what ended, or make it anew when its makings changed."""
        _need_root()
        with locked(self._lock):
            made: list[binaries.Binaries] = []
            in_parallel(
                lambda: packages.ensure(packages.TO_RUN),
                lambda: made.append(binaries.ensure(self._settings.cache)),
                self._provisioner,
            )
            (built,) = made
            if teardown.was_cut(self._settings):
                teardown.remove(self._settings)
            if self._settings.state.exists():
                try:
                    return self._continue(built)
                except LocalClusterError as error:
                    say(f"the cluster cannot be continued, so it is made anew: {error}")
                    teardown.remove(self._settings)
            return self._bring_up(built)

    def _continue(self, built: binaries.Binaries) -> Cluster:
        """Bring up what is there; a component that was just ending when it was looked at is started then."""
        try:
            return self._bring_up(built)
        except ComponentEndedError:
            return self._bring_up(built)

    def down(self) -> None:
        """Remove the cluster; caches of binaries and images stay."""
        _need_root()
        with locked(self._lock), step(f"removing cluster {self._settings.name}"):
            teardown.remove(self._settings)

    def status(self) -> list[Row]:
        """Look at each component's process, at the API server, the node and DNS."""
        settings = self._settings
        if not settings.state.exists():
            return [Row("cluster", False, f"not made: no {settings.state}")]
        rows = []
        programs = (c for c in binaries.COMPONENTS if c not in ("etcd", "kubectl"))
        for name in ("containerd", "etcd", *programs, "kube-network-policies"):
            handle = processes.find(self._pids, name)
            log = settings.logs / f"{name}.log"
            rows.append(Row(name, handle is not None, f"pid {handle.pid}" if handle else f"not running, see {log}"))
        api = self._api_ready()
        rows.append(Row("API", api, "ready" if api else "does not answer"))
        node, dns = api and self._node_ready(), api and self._dns_ready()
        rows.append(Row(settings.node, node, "Ready" if node else "not Ready"))
        rows.append(Row("DNS", dns, "ready" if dns else "does not answer"))
        enforced = network.policies_enforced(settings)
        rows.append(Row("policies", enforced, "enforced" if enforced else "not judged: new connections are dropped"))
        egress = self._recorded("egress") or "unknown"
        rows.append(Row("egress", egress != "unknown", egress))
        return rows

    def cluster(self) -> Cluster:
        """Describe the cluster as it stands."""
        settings, net = self._settings, network.remembered(self._settings)
        if net is None or not settings.kubeconfig.exists():
            raise LocalClusterError(f"cluster {settings.name} is not made: run `python -m localcluster up`")
        return Cluster(settings.kubeconfig, settings.bin_dir, settings.audit_log, "local", net.gateway)

    def build_and_load(self, name: str, dockerfile: Path, context: Path) -> str:
        """Build with buildah, unless there is an archive of the same content, and import into containerd."""
        _need_root()
        image = images.build(self._settings.cache, name, dockerfile, context)
        if image.reference not in self._images():
            with step(f"importing {image.reference}"):
                self._ctr("images", "import", str(image.archive))
        self._ctr("images", "tag", "--force", image.reference, f"localhost/{name}:dev")
        return image.reference

    @property
    def _lock(self) -> Path:
        return self._settings.state_root / f"{self._settings.name}.lock"

    def _provisioner(self) -> Path:
        """Build what makes volumes, unless that was done; its directory."""
        return binaries.build(binaries.provisioner(), self._settings.cache / "bin")

    @property
    def _pids(self) -> Path:
        return self._settings.state / "run"

    def _bring_up(self, built: binaries.Binaries) -> Cluster:
        settings = self._settings
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        net = network.remembered(settings) or network.allocate(settings)
        key = built.tools.name.rpartition("-")[2]
        pause, dns = (f"localhost/claudejobs-{name}:{key}" for name in ("pause", "coredns"))
        components = all_components(settings, net, built, pause)
        changed = self._changed(components)
        if state := [component.name for component in changed if not component.needs_api]:
            say(f"made anew, because changed: {', '.join(state)}")
            teardown.remove(settings)
            return self._bring_up(built)
        if changed:
            self._end(changed)
            self._record(components)
        self._prepare(components, net, built)
        restarted = self._start_all(components, built, pause, dns)
        self._set_egress(net)
        applied = self._apply_addons(dns)
        self._wait_until_usable(restarted or applied)
        return self.cluster()

    def _changed(self, components: list[Component]) -> list[Component]:
        """List the components whose rendering differs from what the existing state was made with."""
        recorded = self._recorded("fingerprint")
        if recorded is None:
            self._record(components)
            return []
        was = json.loads(recorded)
        return [component for component in components if was.get(component.name) != _fingerprint(component)]

    def _record(self, components: list[Component]) -> None:
        wanted = {component.name: _fingerprint(component) for component in components}
        write(self._settings.state / "fingerprint", json.dumps(wanted))

    def _end(self, components: list[Component]) -> None:
        """End what runs with arguments that are not wanted any more, to be started with others."""
        say(f"started anew, because changed: {', '.join(component.name for component in components)}")
        found = [handle for component in components if (handle := processes.find(self._pids, component.name))]
        processes.end(found, seconds=5)

    def _recorded(self, name: str) -> str | None:
        try:
            return (self._settings.state / name).read_text()
        except OSError:
            return None

    def _prepare(self, components: list[Component], net: Network, built: binaries.Binaries) -> None:
        """Make what processes stand on: network, control groups, certificates, files."""
        settings = self._settings
        if not network.is_up(settings, net):
            # Processes of a former network namespace are of no use in the new one.
            teardown.clear_node(settings)
            (settings.state / "egress-rules").unlink(missing_ok=True)
            network.create(settings, net)
        network.divert(settings)
        teardown.create_cgroups(settings)
        identities.prepare(settings, net)
        for component in components:
            for path, content in component.files.items():
                write_if_changed(path, content)
        if not (settings.state / "resolv.conf").exists():
            write(settings.state / "resolv.conf", "", 0o644)
        binaries.link_tools(built, settings.bin_dir)

    def _start_all(self, components: list[Component], built: binaries.Binaries, pause: str, dns: str) -> bool:
        """Start what does not run; say whether that was anything."""
        dead = [component for component in components if not processes.find(self._pids, component.name)]
        if not dead:
            return False
        with step(f"starting {', '.join(component.name for component in dead)}"):
            for component in dead:
                if not component.needs_api:
                    self._start(component)
            in_parallel(self._wait_for_api, lambda: self._import_system_images(built, pause, dns))
            for component in dead:
                if component.needs_api:
                    self._start(component)
        return True

    def _start(self, component: Component) -> None:
        settings = self._settings
        argv = [*network.inside(settings), *component.argv]
        processes.start(self._pids, component.name, argv, settings.logs / f"{component.name}.log", settings.state)

    def _import_system_images(self, built: binaries.Binaries, pause: str, dns: str) -> None:
        self._wait(
            "containerd answers",
            lambda: succeeds([*self._ctr_command, "version"]),
            seconds=30,
            of=("containerd",),
        )
        for program, reference in (("pause", pause), ("coredns", dns)):
            self._import_image(reference, [built.tools / program])

    def _import_image(self, reference: str, programs: list[Path]) -> None:
        """Make an image of these programs, unless it is there; the first is its entry point."""
        if reference in self._images():
            return
        files = {program.name: program.read_bytes() for program in programs}
        archive = self._settings.state / f"{programs[0].name}.tar"
        archive.write_bytes(scratch_image(reference, files, [f"/{programs[0].name}"], platform.machine()))
        self._ctr("images", "import", str(archive))
        archive.unlink()

    def _wait_for_api(self) -> None:
        self._wait("the API server is ready", self._api_ready, seconds=90, of=_STARTED_BEFORE_API)

    def _set_egress(self, net: Network) -> None:
        settings, wanted = self._settings, "open" if self._settings.egress_open else "closed"
        rules = network.firewall(settings.identity, net, is_open=settings.egress_open)
        if self._recorded("egress-rules") != rules:
            network.set_egress(settings, net, is_open=settings.egress_open)
            write(settings.state / "egress-rules", rules)
            say(f"  pods' way to addresses outside this machine is {wanted}")
        write(settings.state / "egress", wanted)
        resolvers = "".join(f"nameserver {address}\n" for address in self._nameservers())
        write_if_changed(settings.state / "resolv.conf", resolvers, 0o644)

    def _nameservers(self) -> list[str]:
        if not self._settings.egress_open:
            return []
        found = network.upstream_nameservers(Path("/etc/resolv.conf").read_text())
        if not found:
            say("  no name server of /etc/resolv.conf is reachable from pods: outside names will not resolve")
        return found

    def _apply_addons(self, dns_image: str) -> bool:
        """Apply what changed since the last time; say whether that was anything."""
        built = self._provisioner()
        image = f"localhost/claudejobs-provisioner:{built.name.rpartition('-')[2]}"
        volumes = storage.manifests(image, self._settings.state / "volumes")
        manifests = f"{addons.manifests(dns_image, self._nameservers())}---\n{volumes}"
        if self._recorded("addons") == _hash(manifests):
            return False
        with step("applying DNS, storage and rights"):
            self._import_image(image, [built / program for program in storage.PROGRAMS])
            self._kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifests)
        write(self._settings.state / "addons", _hash(manifests))
        return True

    def _wait_until_usable(self, changed: bool) -> None:
        enforced = partial(network.policies_enforced, self._settings)
        if not changed and enforced() and self._node_ready() and self._dns_ready():
            return
        everything = (
            "containerd",
            *_STARTED_BEFORE_API,
            "kubelet",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-network-policies",
        )
        with step("waiting until pods can run"):
            self._wait("network policies are enforced", enforced, seconds=60, of=everything)
            self._wait("the node is Ready", self._node_ready, seconds=90, of=everything)
            self._wait(
                "the default service account exists",
                lambda: succeeds([*self._kubectl_command, "-n", "default", "get", "serviceaccount", "default"]),
                seconds=60,
                of=everything,
            )
            rollout = ("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=5s")
            self._wait(
                "DNS is rolled out",
                lambda: succeeds([*self._kubectl_command, *rollout]),
                seconds=120,
                of=everything,
            )
            self._wait("DNS answers", self._dns_ready, seconds=60, of=(*everything, "kube-proxy"))

    def _wait(self, what: str, check: Callable[[], bool], *, seconds: float, of: tuple[str, ...]) -> None:
        """Wait, but no longer than the processes live that it depends on."""

        def checked() -> bool:
            if check():
                return True
            if dead := [name for name in of if not processes.find(self._pids, name)]:
                raise ComponentEndedError(f"{dead[0]} ended, its last lines:\n{self._last_lines(dead[0])}")
            return False

        wait_until(what, checked, seconds=seconds, hint=f"The components' logs are in {self._settings.logs}")

    def _last_lines(self, name: str) -> str:
        try:
            text = (self._settings.logs / f"{name}.log").read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-8:])

    @property
    def _kubectl_command(self) -> list[str]:
        return [str(self._settings.bin_dir / "kubectl"), "--kubeconfig", str(self._settings.kubeconfig)]

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return run([*self._kubectl_command, *arguments], stdin=stdin, timeout=60)

    @property
    def _ctr_command(self) -> list[str]:
        return ["ctr", "--address", str(self._settings.containerd_socket), "--namespace", "k8s.io"]

    def _ctr(self, *arguments: str) -> str:
        return run([*self._ctr_command, *arguments])

    def _images(self) -> list[str]:
        return self._ctr("images", "list", "--quiet").splitlines()

    def _api_ready(self) -> bool:
        return succeeds([*self._kubectl_command, "get", "--raw", "/readyz", "--request-timeout=5s"])

    def _node_ready(self) -> bool:
        """Say whether the node is Ready and that was said by the kubelet that runs now."""
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        try:
            answer = self._kubectl("get", "node", self._settings.node, "-o", path)
        except LocalClusterError:
            return False
        kubelet = [
            *network.inside(self._settings),
            sys.executable,
            "-c",
            _CONNECT,
            self._node_address(),
            "10250",
        ]
        return answer.strip() == "True" and succeeds(kubelet)

    def _node_address(self) -> str:
        net = network.remembered(self._settings)
        return net.node_address if net else ""

    def _dns_ready(self) -> bool:
        """Say whether DNS pods answer at their own addresses and behind their Service's."""
        path = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}"
        try:
            found = self._kubectl(
                "-n",
                "kube-system",
                "get",
                "endpointslices",
                "-l",
                "kubernetes.io/service-name=kube-dns",
                "-o",
                path,
            ).split()
        except LocalClusterError:
            return False
        service = [*network.inside(self._settings), sys.executable, "-c", _CONNECT, DNS_SERVICE, "53"]
        return bool(found) and all(_answers(f"http://{address}:8181/ready") for address in found) and succeeds(service)


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"


def _need_root() -> None:
    if os.geteuid() != 0:
        raise LocalClusterError("the cluster without Docker needs root: run as root, or set CLUSTER=kind or existing")


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return int(response.status) == 200
    except OSError:
        return False


def _fingerprint(component: Component) -> str:
    return _hash([component.argv, {str(path): content for path, content in component.files.items()}])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
