"""The commands for queues."""

from __future__ import annotations

import asyncio

import click

from claudejobs.intake.bull import UNAVAILABLE, BullQueue
from claudejobs.intake.connection import connect, describe
from claudejobs.intake.dead_letter import ReplayError
from claudejobs.intake.dead_letter import replay as send_back

from .common import Failure, load_settings


@click.command()
@click.argument("queue")
@click.option("--prefix", default="bull", show_default=True, help="BullMQ's prefix of the queue.")
@click.option("--id", "letters", multiple=True, help="Only this dead letter; may be given again. Default: all.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 100000), help="Most sent back.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent back.")
def replay(queue: str, prefix: str, letters: tuple[str, ...], limit: int, dry_run: bool) -> None:
    """Send jobs back to their QUEUE from its dead-letter queue, the oldest first, under the ids that they had."""
    url = load_settings().redis
    if url is None:
        raise Failure("there is no Redis: set REDIS_URL, or REDIS_HOST")

    try:
        sent, stayed = asyncio.run(_replay(url, prefix, queue, letters, limit, dry_run))
    except ReplayError as error:
        raise Failure(str(error)) from None
    except UNAVAILABLE as error:
        text = "; what stands above is done, and the same command goes on with the rest"
        raise Failure(describe(error) + text) from None
    if not sent + stayed:
        click.echo(f"queue {queue} has no dead letters")
    if stayed:
        raise Failure(f"{stayed} of {sent + stayed} dead letters stay")


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
