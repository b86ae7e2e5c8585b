"""The native module: step keys, buckets and the plain encoding."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import xxhash

from tests.support.junk import shown
from zart._fastpath import MAX_DEPTH, bucket_of, encode_plain, step_key
from zart.errors import SerializationError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "step_keys.json").read_text())


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Items(list[Any]):
    pass


class Pair(tuple[Any, ...]):
    pass


class Table(dict[str, Any]):
    pass


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize("vector", GOLDEN["step_keys"], ids=lambda v: f"{v['space']}-{v['name'][:20]}")
def test_a_step_key_is_the_golden_one(vector: dict[str, Any]) -> None:
    assert step_key(vector["space"], vector["name"]) == vector["key"]


@pytest.mark.parametrize("vector", GOLDEN["step_keys"], ids=lambda v: f"{v['space']}-{v['name'][:20]}")
def test_a_golden_step_key_is_what_the_reference_library_computes(vector: dict[str, Any]) -> None:
    reference = xxhash.xxh64_intdigest(vector["name"].encode(), seed=vector["space"])
    assert vector["key"] % (1 << 64) == reference


def test_a_step_key_fits_a_signed_bigint() -> None:
    keys = [step_key(0, f"step-{number}") for number in range(1000)]
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_one_name_has_different_keys_in_different_spaces() -> None:
    assert len({step_key(space, "approved") for space in range(5)}) == 5


def test_a_name_that_is_no_unicode_text_has_no_key() -> None:
    with pytest.raises(UnicodeEncodeError):
        step_key(0, "\ud800")


@pytest.mark.parametrize("vector", GOLDEN["buckets"], ids=lambda v: f"{v['execution_id'][:20]}-{v['buckets']}")
def test_a_bucket_is_the_golden_one(vector: dict[str, Any]) -> None:
    assert bucket_of(vector["execution_id"], vector["buckets"]) == vector["bucket"]


@pytest.mark.parametrize("buckets", [0, -1])
def test_less_than_one_bucket_is_refused(buckets: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bucket_of("run-1", buckets)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (2**63 - 1, "9223372036854775807"),
        (-(2**63), "-9223372036854775808"),
        (-0.0, "-0.0"),
        (2.5, "2.5"),
        ("é\n😀", '"é\\n😀"'),
        ([], "[]"),
        ((1, (2,)), "[1,[2]]"),
        ({"b": 1, "a": {"c": [None]}}, '{"b":1,"a":{"c":[null]}}'),
    ],
)
def test_json_values_are_encoded_as_they_are(value: Any, text: str) -> None:
    assert encode_plain(value) == text.encode()


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        (float("nan"), "float nan"),
        (float("inf"), "float inf"),
        (float("-inf"), "float -inf"),
        (2**63, "more than 64 bits"),
        (2**64 - 1, "more than 64 bits"),
        (-(2**63) - 1, "more than 64 bits"),
        (10**1000, "more than 64 bits"),
        ("a\0b", "NUL"),
        ("é\0", "NUL"),
        ("日\0", "NUL"),
        ("😀\0", "NUL"),
        ("\ud800", "lone surrogate at index 0"),
        ("ok\udfff", "lone surrogate at index 2"),
        ({"a\0": 1}, "dict key holds a NUL"),
        ({"\ud800": 1}, "dict key holds a lone surrogate"),
        ({1: 2}, "dict key of type int"),
        ({None: 2}, "dict key of type NoneType"),
        ({Text("a"): 1}, f"dict key of type {__name__}.Text"),
        (Text("a"), f"{__name__}.Text"),
        (Number(1), f"{__name__}.Number"),
        (Real(1.0), f"{__name__}.Real"),
        (Items([1]), f"{__name__}.Items"),
        (Pair((1,)), f"{__name__}.Pair"),
        (Table(a=1), f"{__name__}.Table"),
        (Color.RED, f"{__name__}.Color"),
        (Level.HIGH, f"{__name__}.Level"),
        (Point(1), f"{__name__}.Point"),
        (datetime(2026, 1, 1), "datetime.datetime"),
        (date(2026, 1, 1), "datetime.date"),
        (UUID(int=1), "uuid.UUID"),
        (Decimal(1), "decimal.Decimal"),
        (b"a", "type bytes"),
        ({1, 2}, "type set"),
        (object(), "type object"),
        (1j, "type complex"),
    ],
    ids=shown,
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "inside"])
def test_what_would_not_come_back_as_itself_is_refused(value: Any, fact: str, wrapped: bool) -> None:
    outer = {"items": [1, {"price": value}]} if wrapped else value
    with pytest.raises(SerializationError) as caught:
        encode_plain(outer)
    assert caught.value.path == ("$.items[1].price" if wrapped else "$")
    assert fact in caught.value.reason


def test_the_refusal_of_a_type_says_to_annotate_it() -> None:
    with pytest.raises(SerializationError, match="annotate its type"):
        encode_plain({"when": datetime(2026, 1, 1)})


def test_a_key_that_is_no_identifier_is_quoted_in_the_path() -> None:
    with pytest.raises(SerializationError) as caught:
        encode_plain({"two words": {"é": [float("nan")]}})
    assert caught.value.path == '$["two words"]["\\u00e9"][0]'


def test_the_deepest_nesting_that_is_allowed_comes_back() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert json.loads(encode_plain(value)) == value


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: (value,), lambda value: {"a": value}])
def test_deeper_nesting_is_refused(wrap: Any) -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH + 1):
        value = wrap(value)
    with pytest.raises(SerializationError, match="nested more than 200 deep"):
        encode_plain(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.extend([value, value])
    with pytest.raises(SerializationError, match="or it contains itself"):
        encode_plain(value)


def test_a_hundred_thousand_levels_do_not_crash() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SerializationError, match="nested more than 200 deep"):
        encode_plain(value)


def test_a_long_path_is_shortened() -> None:
    with pytest.raises(SerializationError) as caught:
        encode_plain({"k" * 1000: {"last": float("nan")}})
    assert len(caught.value.path) < 200
    assert caught.value.path.startswith("$.kkk")
    assert caught.value.path.endswith(".last")


def test_without_the_native_module_the_import_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "zart._fastpath", None)
    monkeypatch.delitem(sys.modules, "zart.codec")
    with pytest.raises(ImportError, match=r"pip install \.`.*build_ext --inplace"):
        importlib.import_module("zart.codec")
