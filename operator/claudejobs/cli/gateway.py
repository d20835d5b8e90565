"""The command that runs the model gateway."""

from __future__ import annotations

import sys

import click

from claudejobs.gateway import server, settings
from claudejobs.kube.client import ApiError
from claudejobs.settings import SettingsError

from .common import Failure


@click.command()
def gateway() -> None:
    """Run the model gateway, which holds the model API's key for the jobs. Settings: GATEWAY_*."""
    try:
        sys.exit(server.main(settings.GatewaySettings.load()))
    except (SettingsError, ApiError) as error:
        raise Failure(str(error)) from None
