"""Settings: read from the environment, and refused in words that name the variable and print no secret."""

from __future__ import annotations

import pytest

from claudejobs.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        Settings.load()
    assert error.value.__cause__ is None
    return str(error.value).splitlines()


def test_everything_has_a_default_and_a_description() -> None:
    settings = Settings.load()
    assert settings.max_concurrent_jobs == 100
    assert all(field.description for field in Settings.model_fields.values())


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCH_NAMESPACES", " a, b,,c ")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("MODEL_BASE_URL", "")
    settings = Settings.load()
    assert settings.watch_namespaces == ["a", "b", "c"]
    assert (settings.log_level, settings.model_base_url) == ("DEBUG", None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_PORT", "http"),
        ("MAX_CONCURRENT_JOBS", "0"),
        ("RETRY_ATTEMPTS", "21"),
        ("LOG_LEVEL", "LOUD"),
        ("RUNNER_IMAGE_PULL_POLICY", "Sometimes"),
        ("HOST_USERS", "perhaps"),
        ("DEFAULT_MEMORY_LIMIT", "lots"),
        ("DEFAULT_CPU_REQUEST", "1 core"),
    ],
)
def test_a_wrong_variable_is_named_with_what_came(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    (line,) = refused(monkeypatch, **{name: value})
    assert line.startswith(f"{name}: {value!r} is not valid: ")
    assert line.endswith(str(Settings.model_fields[name.lower()].description))


def test_each_wrong_variable_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refused(monkeypatch, REDIS_PORT="x", JOB_TIMEOUT="-1", DATABASE_URL="mysql://u:hunter2@h/d")
    assert sorted(line.partition(":")[0] for line in lines) == ["DATABASE_URL", "JOB_TIMEOUT", "REDIS_PORT"]


@pytest.mark.parametrize(
    ("name", "value"), [("DATABASE_URL", "mysql://u:hunter2@h/d"), ("MODEL_BASE_URL", "ftp://u:hunter2@h")]
)
def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    (line,) = refused(monkeypatch, **{name: value})
    assert line.startswith(f"{name}: ")
    assert "hunter2" not in line
    assert "Value error" not in line


def test_secrets_are_not_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    assert "hunter2" not in repr(Settings.load())
