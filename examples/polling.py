"""Ask another system again and again until it is done, and give up after so many times: a durable polling loop.

From the directory above this one, serve it, and in a second shell order a report:

    zart-runner --app examples.polling --procs 2 --embedded ./db

    zart start report --id report-1 --data '{"subject": "tea", "every": "1s"}' --embedded ./db
    zart wait report-1 --embedded ./db
    zart history report-1 --embedded ./db

Between two checks nothing is held in memory; kill the runner meanwhile, and the loop goes on where it was. A subject of
more than ten letters takes longer than `most_checks` allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import zart
from zart import zart_durable, zart_step


@dataclass(frozen=True)
class Order:
    """Which report, how often it is asked for, and how many times at most."""

    subject: str
    every: str = "1m"
    most_checks: int = 10


class NotReady(Exception):
    """The report did not come in time; the execution fails with it."""


@zart_step("submit", retry="exponential(5, 1s)")
async def submit(subject: str) -> str:
    return f"job-{subject}"  # the other system's name for what it has begun


@zart_step("check-{attempt}", retry="fixed(3, 500ms)", timeout="10s")
async def check(job: str, attempt: int) -> bool:
    """One checkpoint for each round: the name holds the parameter `attempt`."""
    return attempt >= len(job.removeprefix("job-"))  # that system needs one round per letter


@zart_step("download", retry="exponential(5, 1s)")
async def download(job: str) -> str:
    return f"the report of {job}"


@zart_durable("report")
async def order_report(order: Order) -> str:
    job = await submit(order.subject)
    for attempt in range(1, order.most_checks + 1):
        if await check(job, attempt):
            return await download(job)
        await zart.sleep(f"pause-{attempt}", order.every)
    raise NotReady(f"{job} was not done after {order.most_checks} checks")
