"""The commands for jobs."""

from __future__ import annotations

import asyncio

import click

from claudejobs.kube.client import MERGE_PATCH, ApiError, KubeClient, jobs_path

from .common import Failure


@click.command()
@click.argument("name")
@click.option("--namespace", "-n", default="default", show_default=True, help="The job's namespace.")
def retry(name: str, namespace: str) -> None:
    """Run a failed job again, with its attempts counted anew."""

    async def ask() -> None:
        async with KubeClient.connect("cli") as client:
            job = await client.get(jobs_path(namespace, name))
            if job is None:
                raise Failure(f"there is no job {name} in namespace {namespace}")
            phase = job.get("status", {}).get("phase", "Pending")
            if phase != "Failed":
                raise Failure(f"job {name} is {phase}; only a job that has failed can be run again")
            body = {
                "metadata": {"resourceVersion": job["metadata"]["resourceVersion"]},
                "spec": {"rerun": max(job["spec"].get("rerun", 0), job["status"].get("rerun", 0)) + 1},
            }
            await client.request("PATCH", jobs_path(namespace, name), body, content_type=MERGE_PATCH)

    try:
        asyncio.run(ask())
    except ApiError as error:
        raise Failure(str(error)) from None
    click.echo(f"job {name} runs again")
