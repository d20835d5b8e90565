"""Programs that are guests of a cluster for a while: they bring definitions of their own, and leave nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from localcluster.shell import run, succeeds, wait_until


def remove(kubectl: Sequence[str], definitions: str, kinds: Iterable[str], *others: Sequence[str]) -> None:
    """Remove the objects of these kinds, those of the other listings, and the definitions.

    Finalizers, which nobody removes any more, are taken away. A listing is a kind, and a selector as kubectl takes it.
    """
    defined = run([*kubectl, "get", "crd", "-o", "name"])
    own = ",".join(kind for kind in kinds if kind in defined)
    for listing in [*([[own]] if own else []), *others]:
        wait_until("what a guest made is gone", lambda listing=listing: _gone(kubectl, listing), seconds=60)  # type: ignore[misc]
    run([*kubectl, "delete", "--ignore-not-found", "--timeout=60s", "-f", "-"], stdin=definitions)


def _gone(kubectl: Sequence[str], listing: Sequence[str]) -> bool:
    """Delete what is listed; whether there was nothing. What fails is gone already, or is tried again."""
    items = json.loads(run([*kubectl, "get", *listing, "-A", "-o", "json"]))["items"]
    names: dict[str, list[str]] = {}
    for item in items:
        meta, (group, slash, _) = item["metadata"], item["apiVersion"].partition("/")
        kind = f"{item['kind']}.{group}" if slash else item["kind"]
        names.setdefault(meta.get("namespace", "default"), []).append(f"{kind}/{meta['name']}")
    for namespace, there in names.items():
        inside = [*kubectl, "-n", namespace]
        succeeds([*inside, "delete", "--ignore-not-found", "--wait=false", "--force", "--grace-period=0", *there])
        succeeds([*inside, "patch", *there, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'])
    return not items
