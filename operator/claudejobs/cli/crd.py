"""The CustomResourceDefinitions."""

from __future__ import annotations

import click
import yaml

from claudejobs.api.crd import definitions


@click.command()
@click.argument("plural", required=False, type=click.Choice(sorted(definitions())))
def crd(plural: str | None) -> None:
    """Print the CustomResourceDefinitions, or one of them."""
    click.echo(render_crds(plural), nl=False)


def render_crds(plural: str | None = None) -> str:
    """The CustomResourceDefinitions as YAML, as they stand in crds/."""
    head = "# Generated from operator/claudejobs/api by `make crd`; do not edit.\n"
    wanted = [definition for name, definition in definitions().items() if plural in (None, name)]
    return head + yaml.safe_dump_all(wanted, sort_keys=False, width=110, allow_unicode=True)
