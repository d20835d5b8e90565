"""What the commands have in common."""

from __future__ import annotations

import click

from claudejobs.settings import Settings, SettingsError


class Failure(click.ClickException):
    """One clear message on standard error, exit code 1."""


def load_settings() -> Settings:
    """The operator's settings from the environment.

    Raises:
        Failure: they are invalid.
    """
    try:
        return Settings.load()
    except SettingsError as error:
        raise Failure(str(error)) from None
