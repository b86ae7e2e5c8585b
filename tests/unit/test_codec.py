"""Codecs: what comes back as itself, what is refused and where, what cannot be annotated."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Never, NewType, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

from zart.codec import PLAIN, Codec, codec_for
from zart.errors import RegistrationError, SerializationError

MARKERS = json.loads((Path(__file__).parents[1] / "golden" / "plain_markers.json").read_text())
WHERE = "result of step 'x'"


def codec(annotation: Any) -> Codec:
    return codec_for(annotation, where=WHERE)


def refused(annotation: Any, value: Any) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        codec(annotation).round_trip(value)
    return caught.value


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    note: Any = None


@dataclasses.dataclass
class Order:
    lines: list[Line]
    placed: datetime | None = None


@dataclasses.dataclass
class RushOrder(Order):
    pass


@dataclasses.dataclass(eq=False)
class WithoutEquality:
    number: float
    line: Line


@dataclasses.dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise KeyError("odd")


@dataclasses.dataclass
class Grows:
    number: int

    def __post_init__(self) -> None:
        self.number += 1


class Address(TypedDict):
    street: str


class Span(NamedTuple):
    start: int
    end: int


class Status(enum.StrEnum):
    ACTIVE = "active"


class Mixed(enum.Enum):
    TEXT = "a"
    PAIR = (1, 2)


class Model(pydantic.BaseModel):
    number: int = 0
    anything: Any = None
    _hidden: int = pydantic.PrivateAttr(0)


class BiggerModel(Model):
    extra: int = 1


class Choosy(pydantic.BaseModel):
    number: int
    by_number: dict[int, int] = {}

    @pydantic.field_validator("number")
    @classmethod
    def check(cls, number: int) -> int:
        if number == 3:
            raise ValueError("no three")
        if number == 4:
            raise AssertionError("not four,\n ever")
        return number


class Excluding(pydantic.BaseModel):
    secret: str = pydantic.Field("", exclude=True)


class Computing(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    side: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


@dataclasses.dataclass
class HoldsModel:
    model: Model
    other: Model | Computing | None = None


@dataclasses.dataclass
class Unresolved:
    part: Missing  # type: ignore[name-defined]  # noqa: F821


class UnresolvedModel(pydantic.BaseModel):
    part: Missing  # type: ignore[name-defined]  # noqa: F821


class HoldsModelInStruct(msgspec.Struct):
    model: Model


class Zone(tzinfo):
    """Sets its clocks back by one hour at 3:00 on each day, so 2:30 comes twice."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1 if when is not None and (when.hour, when.fold) == (2, 1) else 2)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "Zone"


Id = NewType("Id", int)
T = TypeVar("T")
LATE = datetime(2026, 1, 1, 2, 30, tzinfo=Zone(), fold=1)


# ---------------------------------------------------------------------------------------------------------------------
# Without an annotation


@pytest.mark.parametrize("marker", MARKERS, ids=lambda marker: marker["stored"][:30])
def test_a_stored_marker_comes_back_as_its_value(marker: dict[str, str]) -> None:
    assert repr(PLAIN.decode(marker["stored"])) == marker["value"]


@pytest.mark.parametrize("marker", MARKERS, ids=lambda marker: marker["stored"][:30])
def test_the_stored_form_of_a_marker_stays_the_same(marker: dict[str, str]) -> None:
    assert PLAIN.encode(PLAIN.decode(marker["stored"])).decode() == marker["stored"]


@pytest.mark.parametrize(
    "stored",
    ['{"$zart":"stone","value":1}', '{"$zart":"uuid"}', '{"$zart":"uuid","value":3}', '{"$zart":[],"value":1}'],
)
def test_an_unknown_marker_is_refused(stored: str) -> None:
    with pytest.raises(SerializationError, match="no marker that this version"):
        PLAIN.decode(stored)


def test_stored_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(SerializationError, match="not JSON"):
        PLAIN.decode("{")


def test_a_path_into_a_dict_with_the_key_of_markers_is_that_of_the_dict() -> None:
    assert refused(None, {"$zart": {"a": {1}}}).path == '$["$zart"].a'


def test_a_dataclass_without_annotation_is_refused_with_the_remedy() -> None:
    error = refused(None, [Line("a", Decimal(1))])
    assert error.path == "$[0]"
    assert "Line" in error.reason
    assert "annotate its type" in error.reason


def test_a_local_time_that_comes_twice_keeps_its_offset() -> None:
    live = PLAIN.round_trip(LATE)[1]
    assert live.replace(tzinfo=None) == LATE.replace(tzinfo=None, fold=0)
    assert live.utcoffset() == timedelta(hours=1)


@pytest.mark.parametrize(
    "annotation", [None, inspect.Parameter.empty, Any, object, Never, T, Any | None, Annotated[Any, "doc"]]
)
def test_an_annotation_that_says_nothing_gives_the_plain_codec(annotation: Any) -> None:
    assert codec(annotation) is PLAIN


# ---------------------------------------------------------------------------------------------------------------------
# What comes back


@pytest.mark.parametrize(
    ("annotation", "value"), [(None, "text"), (str, "text"), (str | None, "text"), (float, 1.5), (int, 10**9)]
)
def test_an_immutable_scalar_is_its_own_copy(annotation: Any, value: Any) -> None:
    assert codec(annotation).round_trip(value)[1] is value


@pytest.mark.parametrize("annotation", [None, list, list[Any], list[list[int]], Sequence[list[int]]])
def test_changing_the_original_later_does_not_change_the_copy(annotation: Any) -> None:
    original = [[1], [2]]
    _, live = codec(annotation).round_trip(original)
    original[0].append(3)
    original.append([4])
    assert live == [[1], [2]]


def test_an_int_where_a_float_is_annotated_is_kept_as_a_float() -> None:
    data, live = codec(dict[str, float]).round_trip({"a": 3})
    assert data == b'{"a":3.0}'
    assert type(live["a"]) is float


def test_a_tuple_where_a_list_is_annotated_comes_back_as_a_list() -> None:
    assert codec(list[int]).round_trip((1, 2))[1] == [1, 2]


def test_none_is_what_an_annotation_of_none_allows() -> None:
    assert codec(type(None)).round_trip(None) == (b"null", None)
    assert "expected `null`" in refused(type(None), 3).reason.lower()


def test_the_order_of_keys_is_kept() -> None:
    assert list(codec(dict[str, int]).round_trip({"b": 1, "a": 2})[1]) == ["b", "a"]


def test_an_object_without_equality_is_compared_by_its_fields() -> None:
    live = codec(WithoutEquality).round_trip(WithoutEquality(3, Line("a", Decimal("1.0"))))[1]
    assert (live.number, live.line) == (3.0, Line("a", Decimal("1.0")))


@pytest.mark.parametrize("text", ["NaN", "-NaN", "sNaN", "Infinity", "-0", "1.00", "1E+999"])
@pytest.mark.parametrize("annotation", [None, Decimal, list[Decimal]])
def test_every_decimal_comes_back_as_itself(annotation: Any, text: str) -> None:
    value: Any = [Decimal(text)] if annotation == list[Decimal] else Decimal(text)
    assert repr(codec(annotation).round_trip(value)[1]) == repr(value)


def test_a_typed_local_time_that_comes_twice_keeps_its_offset() -> None:
    assert codec(Order).round_trip(Order([], LATE))[1].placed.utcoffset() == timedelta(hours=1)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Id, 3),
        (Computing, Computing(side=2)),
        (HoldsModel, HoldsModel(Model(number=1), Computing(side=2))),
        (dict[str, Model] | None, {"a": Model()}),
        (Annotated[int, msgspec.Meta(ge=1)], 1),
        (Annotated[int, pydantic.Field(gt=0)], 1),
        (Literal[True], True),
        (set[Span], {Span(1, 2)}),
        (list[Status], [Status.ACTIVE]),
    ],
    ids=lambda item: str(item)[:40],
)
def test_less_common_types_come_back_as_themselves(annotation: Any, value: Any) -> None:
    data, live = codec(annotation).round_trip(value)
    assert live == value
    assert type(live) is type(value)
    assert codec(annotation).decode(data) == value


def test_pydantic_is_not_imported_where_no_model_is_used() -> None:
    program = (
        "import sys, dataclasses; from zart.codec import codec_for\n"
        "D = dataclasses.make_dataclass('D', [('a', int)])\n"
        "codec_for(list[D], where='x').round_trip([D(1)])\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and where


@pytest.mark.parametrize(
    ("annotation", "value", "path", "facts"),
    [
        (int, "x", "$", ["int", "expected", "got `str`"]),
        (int, True, "$", ["got `bool`"]),
        (str, Status.ACTIVE, "$", ["Status", "annotate"]),
        (bool, 1, "$", ["got `int`"]),
        (list[int], [1, 2.0], "$[1]", ["got `float`"]),
        (list[int], {"a": 1}, "$", ["expected `array`"]),
        (Address, {"street": 3}, "$.street", ["got `int`"]),
        (Address, {"street": "x", "town": "y"}, "$.town", ["lost"]),
        (
            Order,
            Order([Line("a", Decimal(1), {"when": datetime(2026, 1, 1)})]),
            "$.lines[0].note.when",
            ["would come back as '2026"],
        ),
        (Order, Order([Line("a", Decimal(1), {1, 2})]), "$.lines[0].note", ["would come back as [1, 2]"]),
        (Order, Order([Line("a", Decimal(1), [0, object()])]), "$.lines[0].note[1]", ["type object"]),
        (Order, Order([Line("a", Decimal(1), {1: "a"})]), "$.lines[0].note[1]", ["lost"]),
        (
            Order,
            Order([Line("a", Decimal(1), Line("b", Decimal(2)))]),
            "$.lines[0].note",
            ["a Line would come back as a dict"],
        ),
        (Order, Order([Line("a", Decimal(1), Span(1, 2))]), "$.lines[0].note", []),
        (Order, Order([Line("a", float("nan"))]), "$.lines[0].price", ["float nan"]),  # type: ignore[arg-type]
        (Order, Order([Line("a\0", Decimal(1))]), "$.lines[0].sku", ["NUL"]),
        (Order, Order([Line("\ud800", Decimal(1))]), "$.lines[0].sku", ["surrogate"]),
        (Order, Order([], float("nan")), "$.placed", ["float nan"]),  # type: ignore[arg-type]
        (Order, RushOrder([]), "$", ["a RushOrder would come back as a Order"]),
        (datetime | None, float("nan"), "$", ["float nan"]),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=28))), "$", ["would come back as"]),
        (list[float], [2**53 + 1], "$[0]", ["9007199254740993 would come back as"]),
        (Decimal, 0.1, "$", ["would come back as"]),
        (dict[int | str, str], {1: "a", "1": "b"}, "$[1]", ["lost"]),
        (dict[str, Any], {1: "a"}, "$", ["dict key of type int"]),
        (int, 2**63, "$", ["64 bits"]),
        (list[Any], [2**63], "$[0]", ["64 bits"]),
        (Even, "x", "$", []),
        (Model, {"number": 1}, "$", ["Model"]),
        (Model, BiggerModel(), "$", ["a BiggerModel would come back as a Model"]),
        (Model, Model(anything=[{"k": object()}]), "$.anything[0].k", ["type object"]),
        (Model, Model(anything=datetime(2026, 1, 1)), "$.anything", ["would come back as '2026"]),
        (Model, Model(anything=float("nan")), "$.anything", ["would come back as None"]),
        (list[Model], [Model(number=2**70)], "$[0].number", ["64 bits"]),
        (Excluding, Excluding(secret="s"), "$.secret", ["would come back as ''"]),
        (Annotated[int, pydantic.Field(gt=3)], 2, "$", ["greater than 3"]),
    ],
    ids=lambda item: ascii(item)[:40],
)
def test_a_value_that_would_not_come_back_is_refused(annotation: Any, value: Any, path: str, facts: list[str]) -> None:
    error = refused(annotation, value)
    assert error.path == path
    for fact in facts:
        assert fact.lower() in error.reason.lower()


def test_a_hidden_attribute_of_a_model_that_would_be_lost_is_refused() -> None:
    model = Model()
    model._hidden = 3
    assert refused(Model, model).path == "$._hidden"


def test_a_value_that_changes_with_each_round_trip_is_refused() -> None:
    assert "changes it" in refused(Grows, Grows(1)).reason


def test_a_record_that_holds_itself_is_refused() -> None:
    line = Line("a", Decimal(1))
    line.note = line
    assert "contains itself" in refused(Line, line).reason


def test_records_nested_too_deep_are_refused() -> None:
    line = Line("a", Decimal(1))
    for _ in range(300):
        line = Line("a", Decimal(1), line)
    assert "nested more than 200 deep" in refused(Line, line).reason


def test_what_a_users_own_check_raises_is_a_refusal() -> None:
    even = Even(2)
    even.number = 3
    assert "KeyError: 'odd'" in refused(Even, even).reason


def test_the_refusal_can_name_the_step() -> None:
    assert "result of step 'pay'" in str(refused(int, "x").named("pay"))


async def pending() -> int:
    return 3


@pytest.mark.parametrize("annotation", [None, int, list, dict, list[Line], Order, Line | None, Model])
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: [call], lambda call: {"a": [1, call]}])
def test_a_value_that_was_not_awaited_is_refused_with_the_question(annotation: Any, wrap: Callable[[Any], Any]) -> None:
    call = pending()
    error = refused(annotation, wrap(call))
    assert "pending" in error.reason
    assert error.reason.endswith("not its result; did you forget `await`?")
    call.close()


def test_the_path_of_a_value_that_was_not_awaited_is_told() -> None:
    call = pending()
    assert refused(Order, Order([Line("a", Decimal(1), {"x": call})])).path == "$.lines[0].note.x"
    call.close()


def test_a_type_that_cannot_be_kept_is_named_once() -> None:
    for annotation, value in ((Line, object()), (Model, object())):
        error = refused(annotation, value)
        assert "cannot keep a value of type object: it has no form in JSON; annotate its type" in error.reason


def test_encode_refuses_what_round_trip_refuses() -> None:
    with pytest.raises(SerializationError):
        codec(int).encode("x")


# ---------------------------------------------------------------------------------------------------------------------
# Types that change between storing and reading


def test_a_stored_value_that_fits_no_more_says_so_and_what_to_do() -> None:
    with pytest.raises(SerializationError) as caught:
        codec(Order).decode('{"lines":[{"sku":3,"price":"1"}]}')
    assert caught.value.path == "$.lines[0].sku"
    assert caught.value.reason.startswith(f"it does not fit {__name__}.Order: Expected `str`, got `int`")
    assert str(caught.value.named("pay")).startswith("result of step 'pay' at $.lines[0].sku: it does not fit")
    assert "give added fields a default" in caught.value.named("pay").reason
    assert "another name" in caught.value.named("pay").reason


def test_a_stored_value_that_does_not_fit_comes_with_the_remedy_of_its_place() -> None:
    with pytest.raises(SerializationError) as caught:
        codec(int).decode('"x"')
    error = caught.value.located("input of execution 'order-7'", remedy="start it with data that fits")
    expected = "input of execution 'order-7' at $: it does not fit int: Expected `int`, got `str`"
    assert str(error) == f"{expected}; start it with data that fits"
    assert str(caught.value.located("input of execution 'order-7'")).startswith(f"{expected}; let its type accept")


def test_a_refused_value_keeps_its_own_remedy_wherever_it_is() -> None:
    error = refused(int, "x")
    assert error.located("result of execution 'a'", remedy="never").reason == error.reason
    assert error.named("pay").reason == error.reason


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ('{"number":3}', "no three"),
        ('{"number":4}', "not four, ever"),
        ('{"number":"x"}', "it should be a valid integer"),
        ('{"number":1,"by_number":{"x":1}}', "it should be a valid integer"),
        ("{}", "Field required"),
    ],
)
def test_the_reason_of_a_model_is_what_is_wrong_on_one_line(stored: str, reason: str) -> None:
    with pytest.raises(SerializationError) as caught:
        codec(Choosy).decode(stored)
    assert caught.value.reason == f"it does not fit {__name__}.Choosy: {reason}"


def test_the_path_to_a_key_that_does_not_fit_is_that_of_the_key() -> None:
    with pytest.raises(SerializationError) as caught:
        codec(Choosy).decode('{"number":1,"by_number":{"x":1}}')
    assert caught.value.path == "$.by_number.x"


def test_a_stored_model_that_fits_no_more_says_where() -> None:
    with pytest.raises(SerializationError) as caught:
        codec(list[Model]).decode('[{"number":"x"}]')
    assert caught.value.path == "$[0].number"


def test_added_fields_with_defaults_and_removed_fields_fit_stored_values() -> None:
    assert codec(Line).decode('{"sku":"a","price":"1","colour":"red"}') == Line("a", Decimal(1), None)


def test_a_value_kept_without_annotation_is_read_with_the_one_added_later() -> None:
    assert codec(datetime).decode(PLAIN.encode(datetime(2026, 1, 1))) == datetime(2026, 1, 1)
    with pytest.raises(SerializationError, match=r"it does not fit int: it is a datetime\.datetime") as caught:
        codec(int).decode(PLAIN.encode(datetime(2026, 1, 1)))
    assert caught.value.misfit


def test_stored_text_that_is_not_json_is_refused_by_a_typed_codec() -> None:
    with pytest.raises(SerializationError, match="not JSON"):
        codec(Order).decode("{")


# ---------------------------------------------------------------------------------------------------------------------
# Annotations that cannot be used


@pytest.mark.parametrize(
    ("annotation", "fact"),
    [
        (complex, "complex has no form in JSON"),
        (list[complex], "complex has no form in JSON"),
        (Callable[[int], int], "Callable"),
        ("Order", "Order"),
        (list["Order"], "Order"),
        (3, "3"),
        (str | datetime, "more than one str-like type"),
        (Line | Order, "more than one dataclass"),
        (Mixed, "Mixed"),
        (Unresolved, "Missing"),
        (list[Unresolved], "Missing"),
        (UnresolvedModel, "Missing"),
        (list[UnresolvedModel], "Missing"),
        (HoldsModelInStruct, "HoldsModelInStruct"),
    ],
    ids=lambda item: str(item)[:40],
)
def test_an_annotation_that_cannot_be_used_is_refused_at_registration(annotation: Any, fact: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        codec_for(annotation, where="result of step 'pay'")
    assert str(caught.value).startswith("result of step 'pay': values of type ")
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)
