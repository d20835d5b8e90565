"""The ``claudejobs`` command: the operator itself, its CRD, and a look at the database."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click
import yaml

from claudejobs import __version__
from claudejobs.api.crd import definitions
from claudejobs.intake.bull import UNAVAILABLE, BullQueue
from claudejobs.intake.connection import connect, describe
from claudejobs.intake.dead_letter import ReplayError
from claudejobs.intake.dead_letter import replay as send_back
from claudejobs.kube.client import MERGE_PATCH, ApiError, KubeClient, jobs_path
from claudejobs.settings import Settings, SettingsError
from claudejobs.store import Store, StoreError, upgrade


class _Failure(click.ClickException):
    """One clear message on standard error, exit code 1."""


def _load_settings() -> Settings:
    try:
        return Settings.load()
    except SettingsError as error:
        raise _Failure(str(error)) from None


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run Claude Code jobs on Kubernetes."""


@main.command()
def operator() -> None:
    """Run the operator, in the cluster or outside it (KUBECONFIG)."""
    from claudejobs import main as composition  # noqa: PLC0415 - the other commands need not load it

    settings = _load_settings()
    try:
        sys.exit(composition.main(settings))
    except (StoreError, ApiError) as error:
        raise _Failure(str(error)) from None


@main.command()
def gateway() -> None:
    """Run the model gateway, which holds the model API's key for the jobs. Settings: GATEWAY_*."""
    from claudejobs.gateway import server, settings  # noqa: PLC0415 - the other commands need not load it

    try:
        sys.exit(server.main(settings.GatewaySettings.load()))
    except (SettingsError, ApiError) as error:
        raise _Failure(str(error)) from None


@main.command()
@click.argument("plural", required=False, type=click.Choice(sorted(definitions())))
def crd(plural: str | None) -> None:
    """Print the CustomResourceDefinitions, or one of them."""
    click.echo(render_crds(plural), nl=False)


def render_crds(plural: str | None = None) -> str:
    """The CustomResourceDefinitions as YAML, as they stand in crds/."""
    head = "# Generated from operator/claudejobs/api by `make crd`; do not edit.\n"
    wanted = [definition for name, definition in definitions().items() if plural in (None, name)]
    return head + yaml.safe_dump_all(wanted, sort_keys=False, width=110, allow_unicode=True)


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date. The operator does so itself when it starts."""
    url = _load_settings().database_url.get_secret_value()
    try:
        asyncio.run(upgrade(url))
    except StoreError as error:
        raise _Failure(str(error)) from None


@main.command()
@click.argument("name")
@click.option("--namespace", "-n", default="default", show_default=True, help="The job's namespace.")
def retry(name: str, namespace: str) -> None:
    """Run a failed job again, with its attempts counted anew."""

    async def ask() -> None:
        async with KubeClient.connect("cli") as client:
            job = await client.get(jobs_path(namespace, name))
            if job is None:
                raise _Failure(f"there is no job {name} in namespace {namespace}")
            phase = job.get("status", {}).get("phase", "Pending")
            if phase != "Failed":
                raise _Failure(f"job {name} is {phase}; only a job that has failed can be run again")
            body = {
                "metadata": {"resourceVersion": job["metadata"]["resourceVersion"]},
                "spec": {"rerun": max(job["spec"].get("rerun", 0), job["status"].get("rerun", 0)) + 1},
            }
            await client.request("PATCH", jobs_path(namespace, name), body, content_type=MERGE_PATCH)

    try:
        asyncio.run(ask())
    except ApiError as error:
        raise _Failure(str(error)) from None
    click.echo(f"job {name} runs again")


@main.command()
@click.argument("queue")
@click.option("--prefix", default="bull", show_default=True, help="BullMQ's prefix of the queue.")
@click.option("--id", "letters", multiple=True, help="Only this dead letter; may be given again. Default: all.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 100000), help="Most sent back.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent back.")
def replay(queue: str, prefix: str, letters: tuple[str, ...], limit: int, dry_run: bool) -> None:
    """Send jobs back to their QUEUE from its dead-letter queue, the oldest first, under the ids that they had."""
    url = _load_settings().redis
    if url is None:
        raise _Failure("there is no Redis: set REDIS_URL, or REDIS_HOST")

    try:
        sent, stayed = asyncio.run(_replay(url, prefix, queue, letters, limit, dry_run))
    except ReplayError as error:
        raise _Failure(str(error)) from None
    except UNAVAILABLE as error:
        text = "; what stands above is done, and the same command goes on with the rest"
        raise _Failure(describe(error) + text) from None
    if not sent + stayed:
        click.echo(f"queue {queue} has no dead letters")
    if stayed:
        raise _Failure(f"{stayed} of {sent + stayed} dead letters stay")


async def _replay(
    url: str, prefix: str, queue: str, letters: tuple[str, ...], limit: int, dry_run: bool
) -> tuple[int, int]:
    """Send back, and print what became of each; how many were sent, and how many stay."""
    sent = stayed = 0
    redis = connect(url)
    try:
        async for one in send_back(BullQueue(redis, prefix, queue, "replay"), letters or None, limit, dry_run):
            click.echo(f"{one.letter}  {one.problem or f'{one.what} {one.job_id}'}")
            stayed += one.problem is not None
            sent += one.problem is None
    finally:
        await redis.aclose()
    return sent, stayed


@main.command()
@click.option("--namespace", help="Rows of this namespace's jobs only.")
@click.option("--name", help="Rows of jobs of this name only.")
@click.option("--uid", help="Rows of the job with this metadata.uid only; names come again.")
@click.option("--task", help="Rows of this task only.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="Newest rows shown.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def rows(namespace: str | None, name: str | None, uid: str | None, task: str | None, limit: int, output: str) -> None:
    """Show ProcessState rows, the newest first."""
    url = _load_settings().database_url.get_secret_value()
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
        raise _Failure(str(error)) from None
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


if __name__ == "__main__":
    main()
