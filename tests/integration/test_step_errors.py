"""Errors as a body meets them: the same live and replayed, whatever was raised, and every record of them bounded."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import (
    BusinessErr,
    NonRetryable,
    Ok,
    RetryConfig,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepTimedOut,
    ZartErr,
    zart_durable,
    zart_step,
)
from zart.calls import Call
from zart.model import ExecutionStatus

RAN: collections.Counter[str] = collections.Counter()
MET: list[Met] = []
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    MET.clear()
    GATES.clear()


@dataclass(frozen=True)
class Met:
    """All that a body can know of an error."""

    type: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]
    slots: dict[str, Any]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Met:
        slots = [name for base in type(error).__mro__ for name in getattr(base, "__slots__", ())]
        return cls(
            type(error),
            error.args,
            dict(error.__dict__),
            {name: getattr(error, name, None) for name in (*slots, "errno", "filename")},
            str(error),
        )


@zart_step("hold")
async def hold() -> None:
    RAN["hold"] += 1
    await GATES["hold"].wait()


async def met_twice(database: Database, ask: Callable[[], Call[Any, Any]]) -> Met:
    """What a body catches of a call: live, and once more from the journal, after its worker was taken over."""

    @zart_durable("meets")
    async def meets() -> None:
        try:
            await ask()
        except Exception as error:
            MET.append(Met.of(error))
        await hold()

    async with Engine(database, [meets]) as engine:
        await engine.start("m", meets)
        await eventually(lambda: RAN["hold"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2)
        GATES["hold"].set()
        assert (await engine.ended("m")).status == ExecutionStatus.COMPLETED
    live, replayed = MET
    assert live == replayed
    return live


# -- declared errors


class Declined(Exception):
    """A decision, as most are written."""


class Expired(Declined):
    def __init__(self, card: str, *, year: int) -> None:
        super().__init__(f"{card} expired in {year}")
        self.card, self.year = card, year


class Wanting(Exception):
    def __new__(cls, left: int, right: int) -> Wanting:
        return super().__new__(cls, left, right)

    def __init__(self, left: int, right: int) -> None:
        RAN["made"] += 1
        self.total = left + right


class Slotted(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int | None) -> None:
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int
    why: dict[str, list[int]]


class Told(Exception):
    def __str__(self) -> str:
        return f"told by {self.by}"

    by = "class"


def told() -> Exception:
    error = Told()
    error.by = "instance"
    error.add_note("a note")
    return error


DECLARED = [
    (Declined("no"), (Declined,)),
    (Declined(), (Declined,)),
    (Declined(1, "two", None, [3.5, {"four": True}]), (Declined,)),
    (Expired("visa", year=2020), (Declined,)),
    (Expired("visa", year=2020), (KeyError, Declined)),
    (Wanting(1, 2), (Wanting,)),
    (Slotted(51), (Slotted,)),
    (Slotted(None), (Slotted,)),
    (Frozen(7, {"because": [1]}), (Frozen,)),
    (told(), (Told,)),
    (KeyError("k"), (LookupError,)),
    (FileNotFoundError(2, "No such file", "orders.csv"), (OSError,)),
    (UnicodeEncodeError("ascii", "é", 0, 1, "not ascii"), (ValueError,)),
    (NonRetryable("never"), (NonRetryable,)),
    (ValueError("any"), (Exception,)),
]


@pytest.mark.parametrize(("error", "raises"), DECLARED, ids=[repr(error) for error, _ in DECLARED])
async def test_a_declared_error_comes_back_as_itself_live_and_replayed(
    database: Database, error: Exception, raises: tuple[type[Exception], ...]
) -> None:
    @zart_step("declines", raises=raises, retry="fixed(3, 1ms)")
    async def declines() -> None:
        RAN["declines"] += 1
        raise error

    made = RAN["made"]
    assert await met_twice(database, declines) == Met.of(error)
    assert (RAN["declines"], RAN["made"]) == (1, made)


async def test_args_of_a_declared_error_are_plain_values_live_too(database: Database) -> None:
    @zart_step("declines", raises=Declined)
    async def declines() -> None:
        raise Declined((1, 2), {"pair": (3, 4)})

    assert (await met_twice(database, declines)).args == ([1, 2], {"pair": [3, 4]})


async def test_what_a_body_does_to_a_declared_error_does_not_change_the_one_that_was_raised(
    database: Database,
) -> None:
    kept = Declined({"changed": False})

    @zart_step("declines", raises=Declined)
    async def declines() -> None:
        raise kept

    @zart_durable("changes")
    async def changes() -> None:
        try:
            await declines()
        except Declined as error:
            error.args[0]["changed"] = True

    async with Engine(database, [changes]) as engine:
        await engine.start("c", changes)
        await engine.ended("c")
    assert kept.args == ({"changed": False},)


@zart_step("unkeepable", raises=Declined, retry="fixed(3, 1ms)")
async def unkeepable(*args: Any) -> None:
    RAN["unkeepable"] += 1
    raise Declined(*args)


@pytest.mark.parametrize(
    ("args", "path", "why"),
    [
        ((object(),), "$.args[0]", "type object"),
        ((1, float("nan")), "$.args[1]", "nan"),
        (({"at": [2**80]},), "$.args[0].at[0]", "64 bits"),
        (("\ud800",), "$.args[0]", "surrogate"),
        (("x" * 5_000_000,), "$", "the limit is 4,194,304"),
        ((ValueError("inner"),), "$.args[0]", "type ValueError"),
    ],
    ids=["object", "nan", "int", "surrogate", "too large", "exception"],
)
async def test_a_declared_error_that_cannot_be_kept_is_a_failure_that_names_it_and_the_place(
    database: Database, args: tuple[Any, ...], path: str, why: str
) -> None:
    met = await met_twice(database, lambda: unkeepable(*args))
    assert met.type is SerializationError
    assert met.attributes["path"] == path
    assert met.text.startswith(f"declared error {Declined.__module__}.Declined of step 'unkeepable' at {path}: ")
    assert why in met.text
    assert "plain JSON" in met.text
    assert RAN["unkeepable"] == 1


async def test_the_limit_of_a_declared_error_is_the_workers_limit_of_results(database: Database) -> None:
    @zart_durable("declines-much")
    async def declines_much() -> str:
        try:
            await unkeepable("x" * 2_000)
        except SerializationError as error:
            return str(error)
        return "kept"

    config = zart.WorkerConfig(lease_timeout="1h", max_result_bytes=1_024)
    async with Engine(database, [declines_much], config=config) as engine:
        await engine.start("d", declines_much)
        assert "the limit is 1,024" in (await engine.ended("d")).output


# -- failures as data


@zart_step("fails")
async def fails() -> None:
    RAN["fails"] += 1
    raise LookupError("nothing", "there")


async def test_an_error_that_is_not_declared_comes_as_data(database: Database) -> None:
    met = await met_twice(database, fails)
    assert met.type is StepFailed
    assert met.attributes.keys() == {"step", "type_name", "detail", "traceback_text", "attempts", "what"}
    assert (met.attributes["step"], met.attributes["type_name"]) == ("fails", "LookupError")
    assert (met.attributes["detail"], met.attributes["attempts"]) == ("('nothing', 'there')", 1)
    assert met.text == "step 'fails' failed: LookupError: ('nothing', 'there')"
    assert RAN["fails"] == 1


async def test_the_traceback_of_a_failure_begins_in_the_users_code(database: Database) -> None:
    trace = (await met_twice(database, fails)).attributes["traceback_text"]
    assert trace.startswith(f'  File "{__file__}"')
    assert trace.count('  File "') == 1
    assert 'raise LookupError("nothing", "there")' in trace


async def test_the_error_behind_a_failure_is_not_there_live_either(database: Database) -> None:
    @zart_durable("looks-behind")
    async def looks_behind() -> list[bool]:
        try:
            await fails()
        except StepFailed as error:
            return [error.__cause__ is None, error.__context__ is None or error.__suppress_context__]
        return []

    async with Engine(database, [looks_behind]) as engine:
        await engine.start("l", looks_behind)
        assert (await engine.ended("l")).output == [True, True]


async def test_a_failure_after_the_last_retry_tells_how_often_and_what_the_last_error_was(database: Database) -> None:
    @zart_step("fails-on", retry="fixed(2, 1ms)")
    async def fails_on() -> None:
        RAN["fails-on"] += 1
        raise ConnectionError(f"try {RAN['fails-on']}")

    met = await met_twice(database, fails_on)
    assert met.type is RetryExhausted
    assert met.attributes["attempts"] == 3
    assert met.text == "step 'fails-on' failed 3 times, no retry is left; last: ConnectionError: try 3"
    assert RAN["fails-on"] == 3


async def test_last_error_is_the_same_live_and_replayed(database: Database) -> None:
    @zart_step("fails-on", retry="fixed(1, 1ms)")
    async def fails_on() -> None:
        raise ConnectionError("gone")

    @zart_durable("asks")
    async def asks() -> None:
        try:
            await fails_on()
        except RetryExhausted as error:
            RAN[error.last_error] += 1
        await hold()

    async with Engine(database, [asks]) as engine:
        await engine.start("a", asks)
        await eventually(lambda: RAN["hold"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2)
        GATES["hold"].set()
        await engine.ended("a")
    assert RAN["ConnectionError: gone"] == 2


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_a_step_whose_time_is_up_comes_as_step_timed_out(database: Database, scope: Any) -> None:
    @zart_step("slow", timeout="20ms", timeout_scope=scope, retry="fixed(3, 1ms)")
    async def slow() -> None:
        RAN["slow"] += 1
        await asyncio.Event().wait()

    met = await met_twice(database, slow)
    assert met.type is StepTimedOut
    assert (met.attributes["type_name"], met.attributes["attempts"]) == ("TimeoutError", 1)
    assert met.text.startswith("step 'slow' timed out: 0.02 s for ")
    assert RAN["slow"] == 1


async def test_a_step_whose_time_is_up_before_its_next_try_tells_why_the_last_one_failed(database: Database) -> None:
    @zart_step("tries", timeout="10s", retry="fixed(3, 1h)")
    async def tries() -> None:
        raise ConnectionError("the reason")

    @zart_durable("waits")
    async def waits() -> None:
        await tries()

    async with Engine(database, [waits]) as engine:
        await engine.start("w", waits)
        await engine.ended("w")
        (step,) = await engine.history("w")
    assert (step.status, step.error["causes"]) == ("timed_out", ["ConnectionError: the reason"])


async def test_what_an_error_came_of_is_the_same_live_and_replayed(database: Database) -> None:
    @zart_durable("handles")
    async def handles() -> None:
        try:
            raise KeyError("the body handles this")
        except KeyError:
            try:
                await fails()
            except StepFailed as error:
                SEEN.append((error.__cause__, error.__suppress_context__))
        await hold()

    SEEN.clear()
    async with Engine(database, [handles]) as engine:
        await engine.start("h", handles)
        await eventually(lambda: RAN["hold"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2)
        GATES["hold"].set()
        await engine.ended("h")
    assert SEEN == [(None, True), (None, True)]


async def test_a_retry_on_that_raises_fails_the_step_with_its_error(database: Database) -> None:
    def picky(error: BaseException) -> bool:
        raise LookupError(f"no rule for {error}")

    @zart_step("picky", retry=RetryConfig.fixed(3, "1ms", retry_on=picky))
    async def tries() -> None:
        RAN["tries"] += 1
        raise ValueError("this")

    met = await met_twice(database, tries)
    assert (met.type, met.text) == (StepFailed, "step 'picky' failed: LookupError: no rule for this")
    assert RAN["tries"] == 1


async def test_a_result_that_cannot_be_kept_comes_as_serialization_error(database: Database) -> None:
    @zart_step("odd")
    async def odd() -> dict[str, Any]:
        return {"x" * 1_000_000: {1, 2}}

    met = await met_twice(database, odd)
    assert met.type is SerializationError
    assert met.text.startswith("result of step 'odd' at $.xxx")
    assert len(met.text) < 5_000


# -- outcomes and fallbacks


async def _asked(database: Database, ask: Callable[[], Any]) -> list[Any]:
    """What a body makes of a call: live, then replayed."""

    @zart_durable("asks")
    async def asks() -> None:
        SEEN.append(await ask())
        await hold()

    SEEN.clear()
    async with Engine(database, [asks]) as engine:
        await engine.start("a", asks)
        await eventually(lambda: RAN["hold"] == 1)
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2)
        GATES["hold"].set()
        record = await engine.ended("a")
        assert record.status == ExecutionStatus.COMPLETED, record.error
    return SEEN


SEEN: list[Any] = []


@zart_step("charge", raises=Declined)
async def charge(cents: int) -> str:
    if cents < 0:
        raise Declined(cents)
    if cents == 0:
        raise ValueError("nothing to charge")
    return f"charged {cents}"


async def _matched(cents: int) -> str:
    match await zart.outcome(charge(cents)):
        case Ok(receipt):
            return f"ok: {receipt}"
        case BusinessErr(Declined() as declined):
            return f"declined: {declined.args[0]}"
        case ZartErr(failure):
            return f"failed: {failure.type_name}"


@pytest.mark.parametrize(
    ("cents", "told"),
    [(5, "ok: charged 5"), (-5, "declined: -5"), (0, "failed: ValueError")],
    ids=["ok", "declined", "broken"],
)
async def test_an_outcome_matches_one_of_three_live_and_replayed(database: Database, cents: int, told: str) -> None:
    assert await _asked(database, lambda: _matched(cents)) == [told, told]


async def test_unwrap_gives_the_value_or_raises_the_error_live_and_replayed(database: Database) -> None:
    async def unwraps() -> list[str]:
        found: list[str] = []
        for number, cents in enumerate((5, -5, 0)):
            outcome = await zart.outcome(charge(cents).named(f"charge-{number}"))
            try:
                found.append(outcome.unwrap())
            except (Declined, StepFailed) as error:
                found.append(str(error))
        return found

    wanted = ["charged 5", "-5", "step 'charge-2' failed: ValueError: nothing to charge"]
    assert await _asked(database, unwraps) == [wanted, wanted]


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (-5, f"step 'charge' failed: {__name__}.Declined: -5"),
        (0, "step 'charge' failed: ValueError: nothing to charge"),
    ],
    ids=["declared", "broken"],
)
async def test_what_is_required_fails_as_step_failed_live_and_replayed(
    database: Database, cents: int, text: str
) -> None:
    async def requires() -> tuple[Met, Any]:
        try:
            await zart.require(charge(cents))
        except StepFailed as error:
            return Met.of(error), error.__cause__ and Met.of(error.__cause__)
        raise AssertionError

    live, replayed = await _asked(database, requires)
    assert live == replayed
    assert (live[0].type, live[0].text) == (StepFailed, text)
    assert live[1] == (Met.of(Declined(-5)) if cents else None)


async def test_what_is_required_and_succeeds_is_its_value(database: Database) -> None:
    assert await _asked(database, lambda: zart.require(charge(5))) == ["charged 5"] * 2


@pytest.mark.parametrize(
    ("cents", "value"), [(5, "charged 5"), (-5, "free"), (0, "free")], ids=["ok", "declined", "broken"]
)
async def test_step_or_falls_back_on_any_failure(database: Database, cents: int, value: str) -> None:
    assert await _asked(database, lambda: zart.step_or(charge(cents), "free")) == [value, value]


async def test_step_or_else_falls_back_on_a_declared_error_only(database: Database) -> None:
    async def falls_back() -> list[str]:
        def free(declined: Declined) -> str:
            return f"free after {declined.args[0]}"

        found = [await zart.step_or_else(charge(cents).named(f"charge{cents}"), free) for cents in (5, -5)]
        try:
            await zart.step_or_else(charge(0), free)
        except StepFailed as error:
            found.append(error.type_name)
        return found

    wanted = ["charged 5", "free after -5", "ValueError"]
    assert await _asked(database, falls_back) == [wanted, wanted]


async def test_a_mistake_of_the_program_is_no_outcome(database: Database) -> None:
    """Whatever is declared: a fallback must not hide that two steps have one name."""

    @zart_step("same", raises=Exception)
    async def same() -> int:
        return 1

    @zart_durable("repeats")
    async def repeats() -> list[Any]:
        return [await zart.step_or(same(), 2), await zart.step_or(same(), 2), await zart.outcome(same())]

    async with Engine(database, [repeats]) as engine:
        await engine.start("r", repeats)
        error = (await engine.ended("r")).error
    assert error["type"].endswith(".DuplicateStepName")
