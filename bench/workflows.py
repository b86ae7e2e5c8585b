"""The durable functions that are measured, written as a user would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zart.durable import zart_durable
from zart.steps import zart_step


@dataclass(frozen=True, slots=True)
class Order:
    """What an execution is about."""

    number: int


def receipt(number: int, step: int) -> dict[str, Any]:
    """What step `step` of execution `number` gives back: a small dict."""
    return {"execution": number, "step": step, "ok": True}


@zart_step("check-stock")
async def check_stock(number: int) -> dict[str, Any]:
    return receipt(number, 1)


@zart_step("reserve-items")
async def reserve_items(number: int) -> dict[str, Any]:
    return receipt(number, 2)


@zart_step("charge-card")
async def charge_card(number: int) -> dict[str, Any]:
    return receipt(number, 3)


@zart_step("book-courier")
async def book_courier(number: int) -> dict[str, Any]:
    return receipt(number, 4)


@zart_step("send-receipt")
async def send_receipt(number: int) -> dict[str, Any]:
    return receipt(number, 5)


@zart_durable("bench-five-step")
async def five_step(order: Order) -> dict[str, Any]:
    await check_stock(order.number)
    await reserve_items(order.number)
    await charge_card(order.number)
    await book_courier(order.number)
    return await send_receipt(order.number)


@zart_durable("bench-noop")
async def noop(order: Order) -> None:
    return None
