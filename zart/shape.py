"""What an annotation is made of, as far as keeping its values depends on it. Looked at once, at registration."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Never, NoReturn

import msgspec
from msgspec.inspect import (
    AnyType,
    BoolType,
    CustomType,
    DictType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    TupleType,
    Type,
    TypedDictType,
    UnionType,
    VarTupleType,
    type_info,
)

_NOTHING_SAID = (None, inspect.Parameter.empty, Any, object, Never, NoReturn)
_SETS = (set, frozenset, abc.Set, abc.MutableSet)

# Made of these, values are JSON types already.
_SCALAR_NODES = (AnyType, NoneType, BoolType, IntType, FloatType, StrType, LiteralType)
_CONTAINER_NODES = (ListType, TupleType, VarTupleType, DictType, TypedDictType, UnionType, Field, Metadata)

# A value that is exactly of one of these types is kept as a plain one is: no part of it can contradict the annotation.
_EXACT: tuple[tuple[Type, type], ...] = (
    (NoneType(), type(None)),
    (BoolType(), bool),
    (IntType(), int),
    (FloatType(), float),
    (StrType(), str),
    (ListType(AnyType()), list),
    (DictType(AnyType(), AnyType()), dict),
    (DictType(StrType(), AnyType()), dict),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What an annotation is made of.

    Attributes:
        anything: it says nothing about the value.
        json: its values are made of JSON types.
        exact: the types whose values need no look at the annotation.
        unordered: a set is part of it, so equal values need not have equal bytes.
        pydantic: a pydantic model is part of it.
    """

    anything: bool = False
    json: bool = False
    exact: frozenset[type] = frozenset()
    unordered: bool = False
    pydantic: bool = False


def shape_of(annotation: Any) -> Shape:
    """The shape of a resolved annotation.

    Raises:
        TypeError: a part of it has no form in JSON.
        Exception: whatever resolving the annotations of the user's classes raises, such as NameError.
    """
    if any(annotation is nothing for nothing in _NOTHING_SAID):
        return Shape(anything=True)
    parts = list(_parts(annotation, {}))
    unordered = any(part in _SETS for part in parts)
    if any(map(_is_pydantic, parts)):
        return Shape(unordered=unordered, pydantic=True)
    description = type_info(annotation)
    nodes = list(_nodes(description, set()))
    for node in nodes:
        if isinstance(node, CustomType):
            raise TypeError(f"{named(node.cls)} has no form in JSON")
    members = description.types if isinstance(description, UnionType) else (description,)
    return Shape(
        anything=any(isinstance(member, AnyType) for member in members),
        json=all(map(_is_json, nodes)),
        exact=frozenset(kind for member in members for plain, kind in _EXACT if member == plain),
        unordered=unordered,
    )


def named(annotation: Any) -> str:
    """An annotation as error messages show it."""
    if not isinstance(annotation, type) or typing.get_args(annotation):
        return str(annotation)[:200]
    module, name = annotation.__module__, annotation.__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _parts(annotation: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Every type that an annotation is made of, down into the fields of classes, and what `Annotated` adds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    kind = annotation if origin is None else origin
    yield kind
    for argument in () if kind is Literal else arguments:
        yield from _parts(argument, seen)
    if id(kind) not in seen:
        seen[id(kind)] = kind
        for part in _inner_types(kind):
            yield from _parts(part, seen)


def _inner_types(kind: Any) -> list[Any]:
    if hasattr(kind, "__value__"):  # type X = ...
        return [kind.__value__]
    if hasattr(kind, "__supertype__"):  # NewType
        return [kind.__supertype__]
    if hasattr(kind, "__pydantic_fields__"):
        return [field.annotation for field in kind.__pydantic_fields__.values()]
    if inspect.isclass(kind) and _has_fields(kind):
        return list(typing.get_type_hints(kind, include_extras=True).values())
    return []


def _has_fields(kind: Any) -> bool:
    if isinstance(kind, type(msgspec.Struct)) or dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return True
    return hasattr(kind, "__attrs_attrs__") or hasattr(kind, "_fields")  # the latter of NamedTuple


def _is_pydantic(part: Any) -> bool:
    return hasattr(part, "__pydantic_fields__") or str(getattr(part, "__module__", "")).partition(".")[0] == "pydantic"


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """Every node of msgspec's description of a type; the description keeps them alive, so ids tell them apart."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    held = [getattr(node, name) for name in node.__struct_fields__]
    for child in chain(held, *filter(lambda value: isinstance(value, tuple), held)):
        if isinstance(child, Type | Field):
            yield from _nodes(child, seen)


def _is_json(node: Any) -> bool:
    if isinstance(node, DictType):
        return isinstance(node.key_type, StrType | AnyType)
    return isinstance(node, (*_SCALAR_NODES, *_CONTAINER_NODES))
