"""The commands for the database."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from claudejobs.store import Store, StoreError, upgrade

from .common import Failure, load_settings


@click.command()
def migrate() -> None:
    """Bring the database's schema up to date. The operator does so itself when it starts."""
    url = load_settings().database_url.get_secret_value()
    try:
        asyncio.run(upgrade(url))
    except StoreError as error:
        raise Failure(str(error)) from None


@click.command()
@click.option("--namespace", help="Rows of this namespace's jobs only.")
@click.option("--name", help="Rows of jobs of this name only.")
@click.option("--uid", help="Rows of the job with this metadata.uid only; names come again.")
@click.option("--task", help="Rows of this task only.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="Newest rows shown.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def rows(namespace: str | None, name: str | None, uid: str | None, task: str | None, limit: int, output: str) -> None:
    """Show ProcessState rows, the newest first."""
    url = load_settings().database_url.get_secret_value()
    wanted = {"job_namespace": namespace, "job_name": name, "job_uid": uid, "task_id": task}

    async def read() -> list[dict[str, Any]]:
        store = Store(url)
        try:
            return await store.rows({k: v for k, v in wanted.items() if v}, limit)
        finally:
            await store.stop()

    try:
        found = asyncio.run(read())
    except StoreError as error:
        raise Failure(str(error)) from None
    click.echo(json.dumps(found, default=str, indent=2) if output == "json" else _table(found))


_COLUMNS = (
    "job_name",
    "attempt",
    "status",
    "progress",
    "task_id",
    "error_category",
    "cost_usd",
    "pod_name",
    "start_time",
)


def _table(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no rows"
    lines = [_COLUMNS, *(tuple("" if row[c] is None else str(row[c]) for c in _COLUMNS) for row in found)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
