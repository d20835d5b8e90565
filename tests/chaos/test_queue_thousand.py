"""A thousand queue jobs, while the operator is killed twenty times and Redis five times: each runs exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster import Cluster
from tests.support.drain import check, drained, make_jobs
from tests.support.kube import Namespace

from .field import NOTES

pytestmark = pytest.mark.e2e


def test_a_thousand_queue_jobs_run_exactly_once(cluster: Cluster, own_namespace: Namespace, tmp_path: Path) -> None:
    with drained(cluster, own_namespace, tmp_path, make_jobs(1000), slots=200) as drain:
        drain.run(kills=20, restarts=5, timeout=1200)  # ten minutes, when the machine has much else to do
        NOTES.append(check(drain))
