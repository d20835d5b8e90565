"""The ``claudejobs`` command itself; what its commands do is tested where their parts are."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from claudejobs.cli.main import COMMANDS, main

HEAVY = ("sqlalchemy", "alembic", "kopf", "redis", "bullmq")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_listed_and_explains_itself(command: str) -> None:
    listed = CliRunner().invoke(main, ["--help"])
    assert f"\n  {command} " in listed.output
    explained = CliRunner().invoke(main, [command, "--help"])
    assert explained.exit_code == 0
    assert f"main {command}" in explained.output


def test_a_command_that_is_not_there() -> None:
    result = CliRunner().invoke(main, ["rnu"])
    assert result.exit_code == 2
    assert "No such command 'rnu'" in result.output


@pytest.mark.parametrize("command", ["crd", "gateway", "retry"])
def test_a_command_loads_no_library_of_the_others(command: str) -> None:
    code = (
        "import sys; from claudejobs.cli.main import main; "
        f"main(['{command}', '--help'], standalone_mode=False); print(sorted({{*{HEAVY}}} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
