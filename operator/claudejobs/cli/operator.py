"""The command that runs the operator."""

from __future__ import annotations

import sys

import click

from claudejobs import main as composition
from claudejobs.kube.client import ApiError
from claudejobs.store import StoreError

from .common import Failure, load_settings


@click.command()
def operator() -> None:
    """Run the operator, in the cluster or outside it (KUBECONFIG)."""
    settings = load_settings()
    try:
        sys.exit(composition.main(settings))
    except (StoreError, ApiError) as error:
        raise Failure(str(error)) from None
