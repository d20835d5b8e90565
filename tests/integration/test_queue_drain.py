"""Queue jobs in numbers, while the operator and Redis are killed; `make chaos` does the same with a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster import Cluster
from tests.support.drain import check, drained, make_jobs
from tests.support.kube import Namespace

pytestmark = pytest.mark.e2e


def test_every_queue_job_runs_exactly_once(cluster: Cluster, own_namespace: Namespace, tmp_path: Path) -> None:
    with drained(cluster, own_namespace, tmp_path, make_jobs(150), slots=60) as drain:
        drain.run(kills=4, restarts=2, timeout=300)
        print(check(drain))
