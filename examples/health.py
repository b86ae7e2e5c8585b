"""Check many addresses at once, on as many workers as there are, and tell which ones are down: a fan-out.

From the directory above this one, serve it, and in a second shell ask for a round:

    zart-runner --app examples.health --procs 2 --embedded ./db

    zart start check-all --id round-1 --data '["ok.example", "slow.example", "down.example"]' --embedded ./db
    zart wait round-1 --embedded ./db
    zart list --parent round-1 --embedded ./db

Each check is a work item of its own: it is retried by itself, and whichever worker is free takes it. The round waits in
no process. Kill workers meanwhile: no check that has ended is made again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zart
from zart import BusinessErr, Ok, ZartErr, zart_durable, zart_step


class Unhealthy(Exception):
    """The address answered that it is not well. Not to be asked again in this round."""


@dataclass(frozen=True)
class Report:
    """What a round found; addresses in the order they were given."""

    healthy: list[str]
    unhealthy: dict[str, str]
    unknown: dict[str, str]


@zart_step("check-{address}", retry="fixed(2, 200ms)", timeout="10s", raises=Unhealthy)
async def check(address: str) -> int:
    """Milliseconds that the answer took. Stands for a request over the network."""
    if address.startswith("down"):
        raise ConnectionError(f"{address} refuses connections")
    if address.startswith("sick"):
        raise Unhealthy("503 Service Unavailable")
    took = 300 if address.startswith("slow") else 10
    await asyncio.sleep(took / 1_000)
    return took


@zart_durable("check-all", timeout="5m")
async def check_all(addresses: list[str]) -> Report:
    handles = [zart.schedule(check(address)) for address in addresses]
    report = Report([], {}, {})
    for address, outcome in zip(addresses, await zart.wait(handles), strict=True):
        match outcome:
            case Ok():
                report.healthy.append(address)
            case BusinessErr(error):
                report.unhealthy[address] = str(error)
            case ZartErr(failure):
                report.unknown[address] = failure.detail
    return report
