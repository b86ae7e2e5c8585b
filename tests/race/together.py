"""Calls of many players that go to the database as one statement, as a worker's do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


class Together(Generic[A, R]):
    """What is asked while a statement is under way goes with the next one.

    Args:
        send: carries out what was asked, and gives one answer for each, in the same order. What it raises, all that
            asked get.
    """

    def __init__(self, send: Callable[[list[A]], Awaitable[list[R]]]) -> None:
        self._send = send
        self._asked: list[tuple[A, asyncio.Future[R]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, asked: A) -> R:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._asked.append((asked, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return await answer

    async def _send_all(self) -> None:
        while self._asked:
            taken, self._asked = self._asked, []
            try:
                answers: list[R] | BaseException = await self._send([asked for asked, _ in taken])
            except Exception as error:
                answers = error
            for number, (_, waiting) in enumerate(taken):
                if waiting.done():  # its player was cancelled
                    continue
                if isinstance(answers, BaseException):
                    waiting.set_exception(answers)
                else:
                    waiting.set_result(answers[number])
        self._sending = None
