"""Random bodies: what they do, and a turn that does it under one claim, as an engine would."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from tests.race.record import Race, Stored
from tests.support.ticking import NEVER, Checkpoint, Child, Claim, Move
from zart.model import Kind, Outcome, StoredStatus, Verb

Program = list[list[Any]]

MAX_DEPTH = 2
RETRIES = 2


class Lost(Exception):
    """The claim is gone, or was given back: the turn ends here."""


class Failed(Exception):
    """The body fails, and is to be tried again."""


class Store(Protocol):
    """What a turn needs of its worker."""

    race: Race
    child_lane: int

    @property
    def id(self) -> int:
        """Its present identity."""
        ...

    async def keep(self, turn: Turn, row: Checkpoint) -> Stored:
        """Commit a checkpoint; gives back what is stored under its key, whoever wrote it."""
        ...

    async def move(self, turn: Turn, row: Move, children: tuple[Child, ...] = ()) -> None:
        """Commit a verb, with children."""
        ...

    async def load(self, turns: list[Turn]) -> None:
        """Read journals and counters anew, in one snapshot."""
        ...


def random_program(chance: random.Random, depth: int = 0) -> Program:
    """Steps (some fail at first), sleeps, events with and without timeout, and children, down to MAX_DEPTH."""
    program: Program = []
    for number in range(chance.randint(1, 4)):
        kind = chance.random()
        if kind < 0.40:
            program.append(["step", f"s{number}"])
        elif kind < 0.45:
            program.append(["flaky", f"f{number}"])
        elif kind < 0.60:
            program.append(["sleep", f"t{number}", chance.choice([0, 0.002, 0.01, 0.04])])
        elif kind < 0.75 and depth == 0:
            program.append(["event", f"e{number}", chance.choice([None, None, None, None, 0.02])])
        elif depth < MAX_DEPTH:
            width = chance.choice([1, 2, 3, 8, 20] if depth == 0 else [1, 2, 4])
            program.append(["children", f"c{number}", [random_program(chance, depth + 1) for _ in range(width)]])
        else:
            program.append(["step", f"s{number}"])
    if depth and chance.random() < 0.05:
        program.append(["fail_first_run"])
    return program


def key_of(kind: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(slots=True, eq=False)
class Turn:
    """One pass of a program under a claim."""

    store: Store
    claim: Claim
    wakes: int
    program: Program = field(default_factory=list[list[Any]])
    attempt: int = 0
    history: dict[int, Stored] = field(default_factory=dict[int, Stored])
    known_children: int = 0
    done_at: int = NEVER
    waiting: bool = False
    dead: bool = False
    zombie: bool = False
    poked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def race(self) -> Race:
        return self.store.race

    async def run(self) -> None:
        """Run the program to its end, or until the claim is given back or lost."""
        try:
            output = [await self._perform(operation) for operation in self.program]
            if self.race.chance.random() < 0.2:
                await asyncio.sleep(self.race.chance.random() * 0.01)
            await self._finish(StoredStatus.COMPLETED, output)
        except Failed as failure:
            await self._fail(str(failure))
        except Lost:
            self.race.counts["turns lost or given back"] += 1
        finally:
            self.dead = True

    async def _fail(self, why: str) -> None:
        try:
            if why == "first run" or self.attempt >= RETRIES:
                await self._finish(StoredStatus.FAILED, why)
            else:
                due = self.race.chance.choice([0.0, 0.005])
                await self.store.move(self, Move(self.claim.id, self.claim.epoch, Verb.RETRY, due=due, error=b'"x"'))
                self.race.counts["retried"] += 1
        except Lost:
            self.race.counts["turns lost or given back"] += 1

    async def _finish(self, status: StoredStatus, output: Any) -> None:
        text = json.dumps(output).encode()
        await self.store.move(self, Move(self.claim.id, self.claim.epoch, Verb.FINISH, status=status, output=text))
        self.race.end((self.claim.id, self.claim.run), status.name)

    async def _perform(self, operation: list[Any]) -> Any:
        if self.dead:
            raise Lost
        match operation:
            case ["step", name]:
                return await self._step(key_of("step", name), name)
            case ["flaky", name]:
                return await self._flaky(key_of("step", name), name)
            case ["sleep", name, seconds]:
                return await self._sleep(key_of("step", name), name, seconds)
            case ["event", name, timeout]:
                return await self._event(name, timeout)
            case ["children", name, programs]:
                return await self._children(name, programs)
            case ["fail_first_run"]:
                if self.claim.run == 1:
                    raise Failed("first run")
                return None
            case _:
                raise AssertionError(operation)

    async def _step(self, key: int, name: str) -> Any:
        if key not in self.history:
            if (self.claim.id, self.claim.run, key) in self.race.returned:
                self._started_again(name)
            self.race.counts["steps run"] += 1
            if self.race.chance.random() < 0.1:
                await asyncio.sleep(self.race.chance.random() * 0.005)
            await self._keep(Kind.STEP, key, name, value=self.race.chance.random())
        return self._give(key, self.history[key].value)

    def _started_again(self, name: str) -> None:
        """Only a turn that cannot know yet that its claim was stolen may start what its heir has committed."""
        if self.zombie or self.store.id in self.race.stolen:
            self.race.counts["steps of zombies"] += 1
        else:
            self.race.violation(f"the committed step {name} of {self.claim} started again")

    async def _flaky(self, key: int, name: str) -> Any:
        if key not in self.history and self.attempt == 0:
            await self._keep(Kind.STEP, key, name, status=Outcome.FAILED)
        if key in self.history and self.history[key].status == Outcome.FAILED:
            raise Failed(name)
        return await self._step(key, name)

    async def _sleep(self, key: int, name: str, seconds: float) -> Any:
        if key not in self.history:
            await self._keep(Kind.SLEEP, key, name, due=float(seconds))
        due_at = self.history[key].due_at or 0.0
        while monotonic() < due_at:
            await self._park(due_at=due_at)
        return self._give(key, "slept")

    async def _event(self, name: str, timeout: float | None) -> Any:
        key, wait_key = key_of("event", name), key_of("wait", name)
        if key not in self.history and wait_key not in self.history:
            await self._keep(Kind.WAIT, wait_key, name, due=timeout)
            await self.store.load([self])
        due_at = self.history[wait_key].due_at if timeout is not None and wait_key in self.history else None
        while key not in self.history:
            if due_at is not None and monotonic() >= due_at:
                await self._keep(Kind.EVENT, key, name, status=Outcome.TIMED_OUT)
                break
            await self._park(due_at=due_at)
        return self._give(key, [self.history[key].status, self.history[key].value])

    async def _children(self, name: str, programs: list[Program]) -> Any:
        keys = [key_of("step", f"{name}/{number}") for number in range(len(programs))]
        missing = [number for number, key in enumerate(keys) if key not in self.history]
        group_key = key_of("group", f"{name}/{self.attempt}")
        if missing and group_key not in self.history:
            children = tuple(
                Child(
                    self.claim.id,
                    self.claim.run,
                    keys[number],
                    f"{name}/{number}",
                    "child",
                    self.store.child_lane,
                    input=json.dumps(programs[number]).encode(),
                )
                for number in missing
            )
            await self.store.move(self, Move(self.claim.id, self.claim.epoch, Verb.HOLD), children)
            await self._keep(Kind.GROUP, group_key, f"{name}/{self.attempt}")
        while left := sum(key not in self.history for key in keys):
            await self._park(awaited=left)
        if any(self.history[key].status != StoredStatus.COMPLETED for key in keys):
            raise Failed(name)
        return self._give(key_of("step", name), [self.history[key].value for key in keys])

    async def _park(self, due_at: float | None = None, awaited: int | None = None) -> None:
        """Wait in memory for a while, then give the claim back until something happens or it is due."""
        self.done_at = NEVER if awaited is None else self.known_children + awaited
        if self.race.chance.random() < 0.5:
            grace = self.race.chance.choice([0.002, 0.01, 0.05])
            if await self._heard_within(grace if due_at is None else min(grace, max(0.0, due_at - monotonic()))):
                self.race.counts["poked in memory"] += 1
                await self.store.load([self])
                return
            if due_at is not None and monotonic() >= due_at:
                return
        due = None if due_at is None else max(0.0, due_at - monotonic())
        await self.store.move(
            self,
            Move(self.claim.id, self.claim.epoch, Verb.PARK, seen=self.wakes, done_at=self.done_at, due=due),
        )
        self.race.counts["parked"] += 1
        raise Lost

    async def _heard_within(self, seconds: float) -> bool:
        self.waiting = True
        self.poked.clear()
        try:
            await asyncio.wait_for(self.poked.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self.waiting = False
            if self.dead:
                raise Lost
        return True

    async def _keep(
        self,
        kind: Kind,
        key: int,
        name: str,
        *,
        status: Outcome = Outcome.COMPLETED,
        due: float | None = None,
        value: Any = None,
    ) -> None:
        row = Checkpoint(
            self.claim.id, self.claim.epoch, key, kind, status, due=due, name=name, result=json.dumps(value).encode()
        )
        self.history[key] = await self.store.keep(self, row)

    def _give(self, key: int, value: Any) -> Any:
        return self.race.give((self.claim.id, self.claim.run, key), value)
