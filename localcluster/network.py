"""The node's network: a namespace of its own, joined to the machine by one pair of interfaces.

Everything of the cluster runs in that namespace, as in a machine of its own: ports never collide with the
machine's, kube-proxy's rules stay inside, and removing the namespace removes interfaces, routes and rules at
once.
Pods are joined to the node by point-to-point interfaces and routed, so traffic between them passes the node's
rules without help of the bridge netfilter module.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import run, succeeds, write

SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443
NETNS = Path("/run/netns")
POLICY_QUEUE = 100
"""The netfilter queue of packets that wait for the judgement of NetworkPolicies."""


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster, all of them derived from its number on this machine (1-254)."""

    number: int

    @property
    def pods(self) -> str:
        """The addresses pods get."""
        return f"10.88.{self.number}.0/24"

    @property
    def link(self) -> str:
        """The two addresses between the machine and the node."""
        return f"10.89.{self.number}.0/30"

    @property
    def gateway(self) -> str:
        """The machine as pods see it: a server bound to this address is in their reach."""
        return f"10.89.{self.number}.1"

    @property
    def node_address(self) -> str:
        """The node as the machine and pods see it."""
        return f"10.89.{self.number}.2"

    @property
    def interface(self) -> str:
        """The machine's end of the pair."""
        return f"claudejobs{self.number}"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.node_address}:{API_PORT}"


def choose(taken: Iterable[str]) -> Network:
    """Pick the lowest number whose networks overlap none of `taken` (CIDR strings, default routes ignored).

    Raises LocalClusterError when all are taken.
    """
    used = [network for text in taken if (network := ipaddress.ip_network(text, strict=False)).prefixlen > 0]
    for number in range(1, 255):
        candidate = Network(number)
        ours = [ipaddress.ip_network(candidate.pods), ipaddress.ip_network(candidate.link)]
        if not any(other.version == own.version and own.overlaps(other) for own in ours for other in used):
            return candidate
    raise LocalClusterError("every network 10.88.x.0/24 is in use on this machine: remove an unused one")


def taken_networks() -> list[str]:
    """List what this machine has addresses in or routes to."""
    found: list[str] = []
    for interface in json.loads(run(["ip", "-json", "-4", "address", "show"])):
        found += [f"{a['local']}/{a['prefixlen']}" for a in interface.get("addr_info", [])]
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
    return found + [r["dst"] for r in routes if r["dst"] != "default" and r.get("type") != "broadcast"]


def remembered(settings: Settings) -> Network | None:
    """Read back which network this cluster has, if it has one."""
    return _read(settings.state / "network.json")


def allocate(settings: Settings) -> Network:
    """Choose a free network and remember it, other clusters' choices respected even while they are down."""
    others = [
        network
        for path in settings.state_root.glob("*/network.json")
        if path.parent != settings.state and (network := _read(path))
    ]
    reserved = [cidr for network in others for cidr in (network.pods, network.link)]
    network = choose([*taken_networks(), *reserved])
    write(settings.state / "network.json", json.dumps({"number": network.number}))
    return network


def _read(path: Path) -> Network | None:
    try:
        return Network(int(json.loads(path.read_text())["number"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def namespace(settings: Settings) -> Path:
    """Where the node's network namespace is mounted."""
    return NETNS / settings.identity


def inside(settings: Settings) -> list[str]:
    """Prefix of a command that is to run in the node's network, on the machine's files."""
    return ["nsenter", f"--net={namespace(settings)}", "--"]


def is_up(settings: Settings, network: Network) -> bool:
    """Say whether the namespace and its link to the machine are there."""
    return succeeds([*inside(settings), "ip", "link", "show", "uplink"]) and succeeds(
        ["ip", "route", "get", network.node_address, "oif", network.interface]
    )


def create(settings: Settings, network: Network) -> None:
    """Make the namespace and its link anew."""
    remove(settings, network)
    ns = settings.identity
    enter = inside(settings)
    run(["ip", "netns", "add", ns])
    run(["ip", "link", "add", network.interface, "type", "veth", "peer", "name", "uplink", "netns", ns])
    run(["ip", "address", "add", f"{network.gateway}/30", "dev", network.interface])
    run(["ip", "link", "set", network.interface, "up"])
    run([*enter, "ip", "address", "add", f"{network.node_address}/30", "dev", "uplink"])
    run([*enter, "ip", "link", "set", "lo", "up"])
    run([*enter, "ip", "link", "set", "uplink", "up"])
    run([*enter, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    # A process of the node that calls a Service needs some route, for its packet to exist and be rewritten.
    run([*enter, "ip", "route", "add", SERVICES, "dev", "uplink"])
    run(["ip", "route", "add", network.pods, "via", network.node_address, "dev", network.interface])


def set_egress(settings: Settings, network: Network, *, is_open: bool) -> None:
    """Open or close the way from pods to addresses beyond this machine."""
    run(["nft", "-f", "-"], stdin=firewall(settings.identity, network, is_open=is_open))
    default = [*inside(settings), "ip", "route", "replace" if is_open else "flush", "default"]
    run([*default, *(["via", network.gateway] if is_open else [])])
    if is_open:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def firewall(identity: str, network: Network, *, is_open: bool) -> str:
    """Render the machine's own rules about the cluster, as one transaction that replaces the former ones."""
    table = f"inet {identity}"
    link = network.interface
    if is_open:
        rules = f"""
  chain forward {{
    type filter hook forward priority filter; policy accept;
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname "{link}" oifname != "{link}" masquerade
  }}"""
    else:
        rules = f"""
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{link}" ip daddr != {network.gateway} drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{link}" drop
  }}"""
    # Adding before deleting makes deleting possible whether or not the table was there.
    return f"add table {table}\ndelete table {table}\ntable {table} {{{rules}\n}}\n"


def divert(settings: Settings) -> None:
    """Hand the first packet of each connection from or to a pod to the judge of NetworkPolicies.

    While none listens, these packets are dropped: policies never stop to hold. Pods' way to the node itself, where the
    API server and the kubelet are, is judged as well. Connections that the node's own processes make are not: probes
    are no pod's business. IPv6, of which pods have only the link's addresses, is switched off on the node.
    """
    enter = inside(settings)
    run([*enter, "sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$f; done"])
    run([*enter, "iptables-restore", "--noflush"], stdin=diversion())


def diversion() -> str:
    """Render the node's rules for `divert`, as one transaction that replaces the former ones.

    In iptables' terms, as kernels without nftables' own queue expression can still hand over by its target.
    """
    judge = "-m conntrack ! --ctstate ESTABLISHED,RELATED"
    return f"""*mangle
-F FORWARD
-F INPUT
-A FORWARD {judge} -j NFQUEUE --queue-num {POLICY_QUEUE}
-A INPUT -i lo -j ACCEPT
-A INPUT -i uplink -j ACCEPT
-A INPUT {judge} -j NFQUEUE --queue-num {POLICY_QUEUE}
COMMIT
"""


def policies_enforced(settings: Settings) -> bool:
    """Say whether somebody judges the packets that `divert` hands over."""
    try:
        queues = run([*inside(settings), "cat", "/proc/net/netfilter/nfnetlink_queue"])
    except LocalClusterError:
        return False
    return any(line.split()[0] == str(POLICY_QUEUE) for line in queues.splitlines())


def remove(settings: Settings, network: Network | None) -> None:
    """Remove what `create` and `set_egress` made, as far as it is there."""
    if network is not None and (Path("/sys/class/net") / network.interface).exists():
        run(["ip", "link", "delete", network.interface])
    if namespace(settings).exists():
        run(["ip", "netns", "delete", settings.identity])
    if succeeds(["nft", "list", "table", "inet", settings.identity]):
        run(["nft", "delete", "table", "inet", settings.identity])


def upstream_nameservers(resolv_conf: str) -> list[str]:
    """Pick from a resolv.conf the name servers that another network namespace can reach."""
    words = [line.split() for line in resolv_conf.splitlines()]
    found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
    return [address for address in found if not _is_local(address)]


def _is_local(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    return parsed.is_loopback or parsed.version == 6


def cni(name: str, network: Network, data: Path) -> dict[str, Any]:
    """Render the network that containerd joins pods to."""
    plugins: Sequence[dict[str, Any]] = [
        {
            "type": "ptp",
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": str(data),
                "ranges": [[{"subnet": network.pods}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "0.4.0", "name": name, "plugins": plugins}
