"""What a start asks for is checked and put in order before anything reaches the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tests.support.junk import shown
from zart.config import MAX_EXECUTION_ID_BYTES
from zart.durable import zart_durable
from zart.errors import InvalidArgument, SerializationError
from zart.starting import CHUNK_BYTES, CHUNK_ROWS, chunks
from zart.terms import MAX_INPUT_BYTES, StartTerms, checked_id, checked_own_id, spec_of, terms_by_name, terms_of


@dataclass
class Order:
    item: str
    count: int


@zart_durable("fulfil", queue="orders", priority=7, max_retries=3, timeout="10m")
async def fulfil(order: Order) -> str:
    return order.item


@zart_durable("sweep")
async def sweep() -> None: ...


def named(task_name: Any = "task", *, queue: Any = "default", priority: Any = 2, delay: Any = None) -> StartTerms:
    return terms_by_name(task_name, queue=queue, priority=priority, delay=delay)


@pytest.mark.parametrize(
    "execution_id", [None, 7, b"a", "", "a\0b", "\ud800", "x" * (MAX_EXECUTION_ID_BYTES + 1), "é" * 300], ids=repr
)
def test_an_id_that_cannot_be_stored_is_refused(execution_id: Any) -> None:
    with pytest.raises(InvalidArgument, match="execution_id"):
        checked_id(execution_id)


def test_an_id_of_the_greatest_length_is_taken() -> None:
    assert checked_own_id("x" * MAX_EXECUTION_ID_BYTES) == "x" * MAX_EXECUTION_ID_BYTES


def test_an_id_in_the_name_space_of_children_can_be_asked_for_but_not_given() -> None:
    assert checked_id("zart:1/1/step") == "zart:1/1/step"
    with pytest.raises(InvalidArgument, match=r"keeps for children; use another id$"):
        checked_own_id("zart:1/1/step")


@pytest.mark.parametrize(
    "terms",
    [
        {"task_name": ""},
        {"task_name": None},
        {"task_name": "a\0"},
        {"queue": ""},
        {"queue": 3},
        {"priority": -1},
        {"priority": 1001},
        {"priority": True},
        {"priority": 1.0},
        {"delay": "soon"},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": timedelta(days=-1)},
    ],
    ids=repr,
)
def test_a_term_that_cannot_be_used_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        named(**terms)


def test_a_start_by_name_takes_any_json_value() -> None:
    assert named().encode("id", {"a": [1, None, "ü"]}) == '{"a":[1,null,"ü"]}'


def test_a_start_by_name_has_no_retries_and_no_timeout() -> None:
    assert (named().max_retries, named().timeout) == (0, None)


def test_a_durable_function_gives_its_own_queue_priority_retries_and_timeout() -> None:
    terms = terms_of(fulfil.spec, queue=None, priority=None, delay=None)
    assert (terms.queue, terms.priority, terms.max_retries, terms.timeout) == ("orders", 7, 3, 600.0)


def test_queue_and_priority_of_the_call_win() -> None:
    terms = terms_of(fulfil.spec, queue="urgent", priority=0, delay="1m")
    assert (terms.queue, terms.priority, terms.delay) == ("urgent", 0, 60.0)


def test_typed_data_is_encoded_by_the_annotation() -> None:
    terms = terms_of(fulfil.spec, queue=None, priority=None, delay=None)
    assert terms.encode("id", Order("tea", 2)) == '{"item":"tea","count":2}'


def test_data_of_another_type_is_refused_with_the_execution_named() -> None:
    terms = terms_of(fulfil.spec, queue=None, priority=None, delay=None)
    with pytest.raises(SerializationError, match=r"^input of execution 'order-7' at \$: the value is not what .*Order"):
        terms.encode("order-7", "tea")


@pytest.mark.parametrize("data", [float("nan"), 2**70, "\ud800", "a\0", {1: 2}, object()], ids=shown)
def test_data_that_would_not_come_back_is_refused_with_the_execution_named(data: Any) -> None:
    with pytest.raises(SerializationError, match=r"^input of execution 'order-7' at \$"):
        named().encode("order-7", data)


@pytest.mark.parametrize("durable", [None, "fulfil", 7])
def test_what_is_no_durable_function_is_refused(durable: object) -> None:
    with pytest.raises(InvalidArgument, match="zart_durable"):
        spec_of(durable)


def test_data_beyond_the_limit_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"^input of execution 'order-7' at .* keep it elsewhere"):
        named().encode("order-7", "x" * MAX_INPUT_BYTES)


def test_a_durable_function_without_a_parameter_takes_no_data() -> None:
    terms = terms_of(sweep.spec, queue=None, priority=None, delay=None)
    assert terms.encode("id", None) == "null"
    with pytest.raises(InvalidArgument, match="takes no data"):
        terms.encode("id", 3)


def test_chunks_are_ordered_by_bucket_and_then_by_id_as_postgresql_orders_bytes() -> None:
    ids = ["b", "a", "Z", "é", "zz", "\U0001f600", "￮", *map(str, range(3 * CHUNK_ROWS))]
    made = list(chunks([(each, "null") for each in ids], 4))
    order = [(chunk.bucket, each.encode()) for chunk in made for each in chunk.ids]
    assert order == sorted(order)
    assert {each for _, each in order} == {each.encode() for each in ids}


def test_a_chunk_has_a_limited_number_of_rows() -> None:
    made = list(chunks([(str(n), "null") for n in range(2 * CHUNK_ROWS + 1)], 1))
    assert [len(chunk.ids) for chunk in made] == [CHUNK_ROWS, CHUNK_ROWS, 1]


def test_a_chunk_has_a_limited_number_of_bytes() -> None:
    text = "x" * (CHUNK_BYTES // 2)
    made = list(chunks([(str(n), text) for n in range(5)], 1))
    assert [len(chunk.ids) for chunk in made] == [2, 2, 1]


def test_of_an_id_given_twice_the_first_data_counts() -> None:
    (chunk,) = chunks([("a", "1"), ("b", "2"), ("a", "3")], 1)
    assert (chunk.ids, chunk.inputs) == (["a", "b"], ["1", "2"])


def test_no_rows_make_no_chunk() -> None:
    assert list(chunks([], 4)) == []
