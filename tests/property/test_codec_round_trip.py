"""Live equals replay: a body receives now what the stored bytes give later. And the native module does as its twin."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import fastpath_twin
from zart import _fastpath
from zart.codec import PLAIN, Codec, codec_for
from zart.errors import SerializationError

# ---------------------------------------------------------------------------------------------------------------------
# The native module and its twin

json_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_ints = st.integers(-(2**63), 2**63 - 1)
json_floats = st.floats(allow_nan=False, allow_infinity=False)
json_scalars = st.none() | st.booleans() | json_ints | json_floats | json_texts


class Text(str):
    pass


class Real(float):
    pass


class Table(dict[str, Any]):
    pass


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda parts: (
            st.lists(parts, max_size=4)
            | st.lists(parts, max_size=4).map(tuple)
            | st.dictionaries(keys, parts, max_size=4)
        ),
        max_leaves=15,
    )


json_values = nested(json_scalars, json_texts)

hostile_texts = st.text(st.characters(exclude_categories=[]), max_size=10) | st.sampled_from(
    ["\0", "é\0", "日\0", "\ud800"]
)
hostile_scalars = st.one_of(
    json_scalars,
    hostile_texts,
    st.floats(),
    st.integers(-(2**65), 2**65),
    st.sampled_from([Text("a"), Real(1.0), Color.RED, Level.LOW, Table(a=1), b"a", {1}, object, 1j, UUID(int=0)]),
    st.datetimes(),
)
hostile_keys = json_texts | hostile_texts | st.integers() | st.none() | st.just(Text("a")) | st.sampled_from(Color)


@st.composite
def buried(draw: st.DrawFn) -> Any:
    """A hostile value inside more containers than the limit, about as many, or few."""
    value = draw(nested(hostile_scalars, hostile_keys))
    for _ in range(draw(st.sampled_from([0, 1, 2, 195, 199, 200, 201, 260]))):
        value = [value] if draw(st.booleans()) else {"key": value}
    return value


def outcome(encode: Any, value: Any) -> tuple[str, str, str]:
    try:
        return "encoded", repr(json.loads(encode(value))), ""
    except SerializationError as error:
        return "refused", error.path, error.reason


def assert_twins_agree(value: Any) -> None:
    native, twin = outcome(_fastpath.encode_plain, value), outcome(fastpath_twin.encode_plain, value)
    assert native[:2] == twin[:2]
    assert native[2].startswith(twin[2])


@given(json_values)
def test_the_twin_and_the_native_module_encode_the_same_values_alike(value: Any) -> None:
    assert outcome(_fastpath.encode_plain, value)[0] == "encoded"
    assert_twins_agree(value)


@given(nested(hostile_scalars, hostile_keys))
def test_the_twin_and_the_native_module_refuse_the_same_values_at_the_same_place(value: Any) -> None:
    assert_twins_agree(value)


@given(buried())
def test_the_twin_and_the_native_module_agree_on_depth(value: Any) -> None:
    assert_twins_agree(value)


@given(st.integers(0, 2**64 - 1), st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_the_twin_and_the_native_module_give_the_same_step_keys(space: int, name: str) -> None:
    assert _fastpath.step_key(space, name) == fastpath_twin.step_key(space, name)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.integers(1, 32767))
def test_the_twin_and_the_native_module_give_the_same_buckets(execution_id: str, buckets: int) -> None:
    assert _fastpath.bucket_of(execution_id, buckets) == fastpath_twin.bucket_of(execution_id, buckets)


# ---------------------------------------------------------------------------------------------------------------------
# Live equals replay


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Order:
    number: int
    lines: list[Line]
    placed: datetime | None = None
    note: Any = None
    by_day: dict[date, float] = dataclasses.field(default_factory=dict)


class Address(TypedDict):
    street: str
    number: NotRequired[int]


class Span(NamedTuple):
    start: int
    end: float


class Card(msgspec.Struct, tag="card"):
    number: str
    valid: date


class Invoice(msgspec.Struct, tag="invoice", rename="camel"):
    net_days: int
    keys: dict[int, Color] = {}


class Tree(msgspec.Struct):
    value: int
    below: list[Tree] = []


class Model(pydantic.BaseModel):
    name: str
    price: Decimal = Decimal(1)
    when: datetime | None = None
    color: Color = Color.RED
    tags: set[str] = set()
    aliased: int = pydantic.Field(0, alias="aliasedName")


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]

offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
datetimes = st.datetimes(timezones=st.none() | offsets)
deltas = st.timedeltas()
decimals = st.decimals(allow_nan=False)
lines = st.builds(Line, json_texts, decimals, json_ints)
pets = st.builds(Cat, lives=json_ints) | st.builds(Dog, name=json_texts)

TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (type(None), st.none()),
    (bool, st.booleans()),
    (int, json_ints),
    (float, json_floats | st.integers(-(2**53), 2**53)),
    (str, json_texts),
    (bytes, st.binary(max_size=20)),
    (datetime, datetimes),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, deltas),
    (UUID, st.uuids()),
    (Decimal, decimals),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (str | None, st.none() | json_texts),
    (datetime | None, st.none() | datetimes),
    (int | float, json_ints | json_floats),
    (list[Any], st.lists(json_values, max_size=3)),
    (dict[str, Any], st.dictionaries(json_texts, json_values, max_size=3)),
    (list[int], st.lists(json_ints, max_size=3)),
    (list[float], st.lists(json_floats | st.integers(-(2**53), 2**53), max_size=3)),
    (dict[str, int], st.dictionaries(json_texts, json_ints, max_size=3)),
    (dict[int, str], st.dictionaries(json_ints, json_texts, max_size=3)),
    (dict[UUID, datetime], st.dictionaries(st.uuids(), datetimes, max_size=3)),
    (tuple[int, str], st.tuples(json_ints, json_texts)),
    (tuple[date, ...], st.lists(st.dates(), max_size=3).map(tuple)),
    (set[str], st.sets(json_texts, max_size=5)),
    (frozenset[int], st.frozensets(json_ints, max_size=5)),
    (Line, lines),
    (
        Order,
        st.builds(
            Order,
            json_ints,
            st.lists(lines, max_size=2),
            st.none() | datetimes,
            json_values,
            st.dictionaries(st.dates(), json_floats, max_size=2),
        ),
    ),
    (Address, st.fixed_dictionaries({"street": json_texts}, optional={"number": json_ints})),
    (Span, st.builds(Span, json_ints, json_floats)),
    (
        Card | Invoice,
        st.builds(Card, json_texts, st.dates())
        | st.builds(Invoice, json_ints, st.dictionaries(json_ints, st.sampled_from(Color), max_size=3)),
    ),
    (
        Tree,
        st.recursive(st.builds(Tree, json_ints), lambda below: st.builds(Tree, json_ints, st.lists(below, max_size=2))),
    ),
    (
        list[Model] | None,
        st.none()
        | st.lists(
            st.builds(
                Model,
                name=json_texts,
                price=decimals.filter(Decimal.is_finite),
                when=st.none() | datetimes,
                color=st.sampled_from(Color),
                tags=st.sets(json_texts, max_size=3),
                aliasedName=json_ints,
            ),
            max_size=2,
        ),
    ),
    (Pet, pets),
    (dict[str, Pet], st.dictionaries(json_texts, pets, max_size=2)),
]
UNORDERED = (set[str], list[Model] | None, frozenset[int])


def assert_live_equals_replay(codec: Codec, value: Any, *, ordered: bool = True) -> Any:
    data, live = codec.round_trip(value)
    replayed = codec.decode(data)
    assert codec.decode(data.decode()) == replayed  # PostgreSQL gives text back
    assert type(live) is type(replayed)
    assert repr(live) == repr(replayed)
    assert live == replayed
    again, second = codec.round_trip(live)
    assert second == live
    if ordered:
        assert again == data
    return live


@pytest.mark.parametrize(("annotation", "values"), TYPES, ids=lambda item: str(item)[:40])
@given(data=st.data())
def test_live_equals_replay(annotation: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    live = assert_live_equals_replay(codec_for(annotation, where="test"), value, ordered=annotation not in UNORDERED)
    assert live == as_lists(value) or live == value


@given(json_values)
@example({"$zart": "datetime", "value": "x"})
@example({"$zart": None})
def test_live_equals_replay_without_annotation(value: Any) -> None:
    assert assert_live_equals_replay(PLAIN, value) == as_lists(value)


@given(st.dictionaries(st.sampled_from(["$zart", "value", "other"]), json_values, max_size=3))
def test_a_dict_that_looks_like_a_marker_comes_back_as_itself(value: Any) -> None:
    assert assert_live_equals_replay(PLAIN, value) == as_lists(value)


@given(
    st.datetimes(timezones=st.none() | st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone))
    | st.dates()
    | deltas
    | st.uuids()
    | decimals
    | st.binary()
)
def test_standard_values_at_the_top_come_back_as_themselves_without_annotation(value: Any) -> None:
    live = assert_live_equals_replay(PLAIN, value)
    assert live == value
    assert type(live) is type(value)
    if isinstance(value, datetime):
        assert live.utcoffset() == value.utcoffset()


@given(nested(hostile_scalars, hostile_keys))
def test_any_value_is_kept_as_it_is_or_refused_with_its_place(value: Any) -> None:
    path = refused_at(PLAIN, value)
    assert path.startswith("$") if path else assert_live_equals_replay(PLAIN, value) == as_lists(value)


@given(nested(hostile_scalars, hostile_keys))
def test_any_value_in_an_untyped_field_is_kept_as_it_is_or_refused_with_its_place(value: Any) -> None:
    codec, order = codec_for(Order, where="test"), Order(1, [], note=value)
    path = refused_at(codec, order)
    assert path.startswith("$.note") if path else assert_live_equals_replay(codec, order) == as_lists(order)


def refused_at(codec: Codec, value: Any) -> str:
    """Where the value is refused, or "" if it is kept."""
    try:
        codec.encode(value)
    except SerializationError as error:
        return error.path
    return ""


@given(json_values)
def test_plain_bytes_are_those_of_orjson(value: Any) -> None:
    if not (isinstance(value, dict) and "$zart" in value):
        assert PLAIN.encode(value) == orjson.dumps(value)


def as_lists(value: Any) -> Any:
    """The value with each tuple, named ones excepted, as the list that it comes back as."""
    if type(value) in (list, tuple):
        return [as_lists(part) for part in value]
    if isinstance(value, dict):
        return {key: as_lists(part) for key, part in value.items()}
    if isinstance(value, Order):
        return dataclasses.replace(value, note=as_lists(value.note))
    return value
