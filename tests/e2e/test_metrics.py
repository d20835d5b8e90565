"""/metrics of a real operator: what it counts once, and what it reads when asked."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.kube import Namespace, job, wait_for
from tests.support.operator import REPOSITORY, OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e

Make = Callable[..., OperatorProcess]


def page(operator: OperatorProcess) -> str:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


def scrape(operator: OperatorProcess) -> dict[str, float]:
    """All samples, by name and labels."""
    samples = [sample for family in text_string_to_metric_families(page(operator)) for sample in family.samples]
    return {f"{s.name}{dict(sorted(s.labels.items())) if s.labels else ''}": s.value for s in samples}


async def test_endings_are_counted_once_and_not_again_after_a_restart(
    own_namespace: Namespace, own_operator: Make
) -> None:
    space = own_namespace.name
    operator = own_operator(max_concurrent_jobs=1).start()
    own_namespace.apply(job("good", "script: tool true"), job("bad", "script: 401"))
    own_namespace.wait_phase("good", "Completed")
    own_namespace.wait_phase("bad", "Failed")
    await wait_rows(operator, "good", "completed")

    def endings(samples: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in samples.items() if name.startswith("claudejobs_attempts_ended_total")}

    first = scrape(operator)
    assert first[f"claudejobs_jobs{{'namespace': '{space}', 'phase': 'Completed'}}"] == 1
    assert first[f"claudejobs_jobs{{'namespace': '{space}', 'phase': 'Failed'}}"] == 1
    assert sum(endings(first).values()) == 2
    assert first[f"claudejobs_cost_usd_total{{'namespace': '{space}'}}"] > 0
    assert first["claudejobs_job_start_seconds_count"] >= 1
    assert first["claudejobs_api_writes_total{'code': '201', 'resource': 'pods', 'verb': 'POST'}"] == 2
    assert (first["claudejobs_leader"], first["claudejobs_store_up"]) == (1, 1)
    before = first["claudejobs_resync_age_seconds"]
    wait_for(lambda: scrape(operator)["claudejobs_resync_age_seconds"] < before or None, "another full listing")
    assert endings(scrape(operator)) == endings(first)
    assert operator.stop() == 0
    successor = own_operator(max_concurrent_jobs=1).start()
    again = scrape(successor)
    assert again[f"claudejobs_jobs{{'namespace': '{space}', 'phase': 'Completed'}}"] == 1
    assert endings(again) == {}
    assert successor.stop() == 0


def test_every_metric_is_documented_and_none_that_is_not_there(own_operator: Make) -> None:
    operator = own_operator().start()
    text = page(operator)
    exported = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE claudejobs_")}
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    documented = {cell.split("`")[1] for cell in text.splitlines() if cell.startswith("| `claudejobs_")}
    assert {name for name in documented if not name.startswith("claudejobs_gateway_")} == exported
    assert operator.stop() == 0
