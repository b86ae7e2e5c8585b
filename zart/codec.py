"""How values are kept: checked JSON bytes, and the copy that comes back from them. The only door to the native module.

The body of an execution receives `decode(encode(value))`, on its first run as on a replay. How, its annotation says:

    plain         none: exact JSON types, checked by `encode_plain`; a top-level datetime, date, timedelta, UUID,
                  Decimal or bytes is kept under a marker.
    JSON-shaped   it is made of None, bool, int, float, str, list, tuple and dict: encoded as plain values are,
                  decoded by the annotation.
    typed         anything else: msgspec (pydantic where a model is part of it) lowers the value to JSON types first.

With an annotation the decoded copy is encoded again and compared: what would come back as something else is refused.
"""

from __future__ import annotations

import base64
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import orjson

from zart.errors import RegistrationError, SerializationError
from zart.lossless import explain, find_difference, find_pending, find_refused
from zart.shape import Shape, named, shape_of

try:
    from zart._fastpath import Attribution, bucket_of, encode_plain, step_key
except ImportError as error:
    raise ImportError(
        "zart's native module zart._fastpath is missing or does not load; build it with `pip install .` or, in a"
        " checkout, `python setup.py build_ext --inplace` (either needs a C compiler and the headers of this Python)"
    ) from error

__all__ = ["MARK", "PLAIN", "Attribution", "Codec", "bucket_of", "codec_for", "encode_plain", "step_key"]


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """How the values of one annotation are kept and come back."""

    annotation: Any

    def encode(self, value: Any) -> bytes:
        """The value as JSON.

        Raises:
            SerializationError: it would not come back as it is; names path, reason and remedy.
        """
        return self.round_trip(value)[0]

    @abstractmethod
    def decode(self, data: str | bytes) -> Any:
        """The value that `data`, made by `encode`, holds.

        Raises:
            SerializationError: it does not fit the annotation (`misfit`), or `encode` did not make it. What is to be
                done depends on the place: the caller names it, with `named` or `located`.
        """

    @abstractmethod
    def round_trip(self, value: Any) -> tuple[bytes, Any]:
        """The value as JSON, and the decoded copy; a None, bool, int, float or str is its own copy.

        Raises:
            SerializationError: as `encode`.
        """


# ---------------------------------------------------------------------------------------------------------------------
# Without an annotation

_SCALARS = frozenset((type(None), bool, int, float, str))
MARK = "$zart"


def _from_timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _to_timedelta(held: list[int]) -> timedelta:
    return timedelta(*held)


def _from_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _as_it_is(value: Any) -> Any:
    return value


# What a marker holds, by type: its name, the way to JSON and back. A dict that has the marker's key is marked itself.
_MARKED: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, date.fromisoformat),
    timedelta: ("timedelta", _from_timedelta, _to_timedelta),
    UUID: ("uuid", str, UUID),
    Decimal: ("decimal", str, Decimal),
    bytes: ("bytes", _from_bytes, base64.b64decode),
    dict: ("dict", _as_it_is, _as_it_is),
}
_CARRIED = _MARKED.keys() - {dict}
_UNMARK = {name: from_json for name, _, from_json in _MARKED.values()}


class _PlainCodec(Codec):
    """Exact JSON types, and markers at the top."""

    __slots__ = ()

    def decode(self, data: str | bytes) -> Any:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise SerializationError(f"the stored text is not JSON: {error}") from error
        return _unmark(value) if _is_marker(value) else value

    def round_trip(self, value: Any) -> tuple[bytes, Any]:
        if type(value) in _SCALARS:
            return encode_plain(value), value
        try:
            if type(value) not in _CARRIED:
                data = encode_plain(value)
                if type(value) is not dict or MARK not in value:
                    return data, orjson.loads(data)
            data = _marked(value)
        except SerializationError:
            _refuse_pending(value)
            raise
        return data, self.decode(data)


def _is_marker(value: Any) -> bool:
    return type(value) is dict and MARK in value


def _marked(value: Any) -> bytes:
    name, to_json, _ = _MARKED[type(value)]
    return encode_plain({MARK: name, "value": to_json(value)})


def _unmark(marker: Any) -> Any:
    try:
        return _UNMARK[marker[MARK]](marker["value"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SerializationError(
            f"the stored value has the key {MARK!r} but is no marker that this version of zart knows; read it with the"
            " version that wrote it"
        ) from error


PLAIN: Codec = _PlainCodec(Any)
"""The codec of values without annotation."""


# ---------------------------------------------------------------------------------------------------------------------
# With an annotation


@dataclass(frozen=True, slots=True)
class _TypedCodec(Codec):
    """`lower` turns a value into JSON types, `parse` reads JSON by the annotation.

    `lower_part` does for any part of a value what `lower` does for the whole; it finds the part that was refused.
    """

    shape: Shape
    lower: Callable[[Any], Any]
    lower_part: Callable[[Any], Any]
    parse: Callable[[str | bytes], Any]

    def decode(self, data: str | bytes) -> Any:
        try:
            return self.parse(data)
        except Exception as error:  # whatever a validator or __post_init__ of the user raises
            plain = PLAIN.decode(data)
            if type(plain) in _CARRIED:  # kept before there was an annotation, or by a caller who does not know it
                return self._read_as(plain)
            path, reason = explain(error)
            raise SerializationError(
                f"it does not fit {named(self.annotation)}: {reason}", path=path, misfit=True
            ) from error

    def _read_as(self, carried: Any) -> Any:
        try:
            return self.round_trip(carried)[1]
        except SerializationError as error:
            kind = named(type(carried))
            raise SerializationError(
                f"it does not fit {named(self.annotation)}: it is a {kind}", misfit=True
            ) from error

    def round_trip(self, value: Any) -> tuple[bytes, Any]:
        try:
            if type(value) in self.shape.exact:
                data = encode_plain(value)
                return data, (value if type(value) in _SCALARS else orjson.loads(data))
            return self._compared(value)
        except SerializationError:
            _refuse_pending(value)
            raise

    def _compared(self, value: Any) -> tuple[bytes, Any]:
        data = self._lowered(value)
        copy = self._parsed(data)
        if not self.shape.unordered and (again := self._lowered(copy)) != data:
            # An int where a float is annotated: the copy equals it but has other bytes, which are stable from now on.
            data, copy = again, self._parsed(again)
            if self._lowered(copy) != data:
                raise SerializationError(
                    f"each round trip of {named(self.annotation)} changes it; make its JSON stable"
                )
        difference = find_difference(value, copy)
        if difference is not None:
            path, reason = difference
            raise SerializationError(
                f"{reason}; change it, or give it a type in {named(self.annotation)} that keeps it", path=path
            )
        return data, copy

    def _lowered(self, value: Any) -> bytes:
        try:
            lowered = self.lower(value)
        except Exception as error:  # whatever a serializer of the user raises
            path, refused = find_refused(value, self.lower_part)
            raise SerializationError(
                f"{named(self.annotation)} cannot keep a value of type {named(type(refused))}: {explain(error)[1]};"
                " annotate its type, or turn it into one that can be kept",
                path=path,
            ) from error
        return encode_plain(lowered)

    def _parsed(self, data: bytes) -> Any:
        try:
            return self.parse(data)
        except Exception as error:  # whatever a validator or __post_init__ of the user raises
            path, reason = explain(error)
            raise SerializationError(
                f"the value is not what {named(self.annotation)} says: {reason}; correct the value or the annotation",
                path=path,
            ) from error


def _refuse_pending(value: Any) -> None:
    """Say of a value that was refused that it holds a call nobody awaited, if it does."""
    found = find_pending(value)
    if found is not None:
        path, shown = found
        raise SerializationError(f"it is {shown}, not its result; did you forget `await`?", path=path) from None


def codec_for(annotation: Any, *, where: str) -> Codec:
    """The codec of an annotation; PLAIN when there is none (None or `inspect.Parameter.empty`), or it is Any or object.

    Args:
        annotation: a resolved type; text in it was replaced as by `typing.get_type_hints`.
        where: what it annotates, for the error's text: "result of step 'send-email'".

    Raises:
        RegistrationError: values of this type cannot be kept; names `where`, the type and the remedy.

    Example:
        >>> codec_for(list[int], where="result of step 'count'").encode([1, 2])
        b'[1,2]'
    """
    try:
        shape = shape_of(annotation)
        return PLAIN if shape.anything else _typed_codec(annotation, shape)
    except Exception as error:  # resolving runs code of the user and of two libraries
        raise RegistrationError(
            f"{where}: values of type {named(annotation)} cannot be kept: {explain(error)[1]}; use standard types,"
            " dataclasses, TypedDicts, NamedTuples, msgspec Structs or pydantic models, all defined at module level"
        ) from error


def _typed_codec(annotation: Any, shape: Shape) -> Codec:
    if shape.pydantic:
        import pydantic
        import pydantic_core

        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)  # a name that is not defined raises here, not with the first value
        return _TypedCodec(
            annotation=annotation,
            shape=shape,
            lower=functools.partial(adapter.dump_python, mode="json", by_alias=True, round_trip=True, warnings="error"),
            lower_part=pydantic_core.to_jsonable_python,
            parse=functools.partial(adapter.validate_json, strict=True),
        )
    lower: Callable[[Any], Any] = _as_it_is if shape.json else functools.partial(msgspec.to_builtins, str_keys=True)
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(annotation)
    return _TypedCodec(annotation=annotation, shape=shape, lower=lower, lower_part=lower, parse=decoder.decode)
