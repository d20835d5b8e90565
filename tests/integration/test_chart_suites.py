"""The suites that lie in the chart, run by real helm-unittest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import localcluster
from tests.support.helm import CHART

DEFECTS = [
    ("deployment.yaml", "strategy: {type: Recreate}", "strategy: {type: RollingUpdate}"),
    ("gateway.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
    ("migration.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("networkpolicy.yaml", "DoesNotExist", "Exists"),
    ("disruption.yaml", "(gt (int .Values.replicas) 1)", "true"),
    ("rbac.yaml", "resources: [claudecodejobs]\n", "resources: [claudecodejobs, claudecodequeues]\n"),
]


def run(chart: Path | str) -> subprocess.CompletedProcess[str]:
    command = [str(localcluster.helm_unittest()), "--strict", str(chart)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_chart_passes_its_suites() -> None:
    done = run(CHART)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("template", "right", "wrong"), DEFECTS, ids=[template for template, _, _ in DEFECTS])
def test_a_defect_would_be_found(tmp_path: Path, template: str, right: str, wrong: str) -> None:
    chart = shutil.copytree(CHART, tmp_path / "claudejobs")
    path = chart / "templates" / template
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert run(chart).returncode == 1
