"""The ``claudejobs`` command: the operator and the gateway, the CRDs, and a look at database, jobs and queues."""

from __future__ import annotations

from importlib import import_module

import click

from claudejobs import __version__

COMMANDS = {
    "crd": "crd",
    "gateway": "gateway",
    "migrate": "database",
    "operator": "operator",
    "replay": "queues",
    "retry": "jobs",
    "rows": "database",
}
"""The module of each command."""


class _Commands(click.Group):
    """Loads the module of a command when it is asked for, so that none waits for the libraries of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module = import_module(f".{COMMANDS[cmd_name]}", __package__)
            self.add_command(getattr(module, cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Run Claude Code jobs on Kubernetes."""


if __name__ == "__main__":
    main()
