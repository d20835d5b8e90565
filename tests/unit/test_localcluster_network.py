"""Addresses and rules of the local cluster's network."""

import ipaddress
from pathlib import Path

import pytest

from localcluster.network import (
    API_SERVICE,
    DNS_SERVICE,
    SERVICES,
    Network,
    choose,
    cni,
    diversion,
    firewall,
    upstream_nameservers,
)
from localcluster.settings import LocalClusterError


def test_the_first_network_is_taken_when_none_is_used() -> None:
    assert choose([]).pods == "10.88.1.0/24"


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (["10.88.1.0/24"], 2),
        (["10.88.0.0/22"], 4),
        (["10.89.1.2"], 2),
        (["0.0.0.0/0", "192.168.0.0/16"], 1),
        (["10.88.2.7/32"], 1),
        (["fd00::/8"], 1),
        (["10.88.1.5/24", "10.88.2.0/24"], 3),
    ],
)
def test_a_network_that_overlaps_is_passed_over(taken: list[str], expected: int) -> None:
    assert choose(taken).number == expected


def test_no_free_network_is_a_clear_error() -> None:
    with pytest.raises(LocalClusterError, match="in use"):
        choose(["10.88.0.0/16"])


def test_addresses_lie_in_their_networks() -> None:
    net = Network(7)
    link = ipaddress.ip_network(net.link)
    assert ipaddress.ip_address(net.gateway) in link
    assert ipaddress.ip_address(net.node_address) in link
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network(SERVICES) for a in (API_SERVICE, DNS_SERVICE))
    # The kernel's limit for an interface's name.
    assert len(Network(254).interface) <= 15


def test_the_closed_firewall_drops_what_is_forwarded_and_masquerades_nothing() -> None:
    rules = firewall("claudejobs-x", Network(3), is_open=False)
    assert 'iifname "claudejobs3" drop' in rules
    assert "masquerade" not in rules


def test_the_open_firewall_masquerades_only_what_leaves() -> None:
    rules = firewall("claudejobs-x", Network(3), is_open=True)
    assert 'iifname "claudejobs3" oifname != "claudejobs3" masquerade' in rules
    assert "drop" not in rules


def test_rules_replace_the_former_ones_in_one_transaction() -> None:
    lines = firewall("claudejobs-x", Network(3), is_open=True).splitlines()
    assert lines[:2] == ["add table inet claudejobs-x", "delete table inet claudejobs-x"]


def test_only_name_servers_in_reach_of_another_namespace_are_used() -> None:
    text = "# made by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch x\n"
    assert upstream_nameservers(text) == ["192.0.2.53"]


def test_pods_get_addresses_of_this_cluster_and_leases_in_its_state() -> None:
    plugin = cni("claudejobs-x", Network(9), Path("/state/cni-data"))["plugins"][0]
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.88.9.0/24"}]]
    assert plugin["ipam"]["dataDir"] == "/state/cni-data"


def test_pods_first_packets_wait_for_the_judge_and_pass_no_other_way() -> None:
    rules = [line for line in diversion().splitlines() if line.startswith("-A")]
    assert [line for line in rules if "NFQUEUE" not in line] == [
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -i uplink -j ACCEPT",
    ]
    assert {line.split()[1] for line in rules if "NFQUEUE" in line} == {"FORWARD", "INPUT"}
    # With it, packets would pass while nobody judges.
    assert "bypass" not in diversion()
