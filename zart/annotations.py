"""Annotations of user code, resolved into codecs."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from zart.codec import Codec, codec_for
from zart.errors import RegistrationError

_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine)


def result_codec(function: Callable[..., Any], where: str) -> Codec:
    """The codec of what a function returns, by its return annotation; PLAIN without one.

    Args:
        function: a plain or an async function.
        where: for the error's text, as "result of step 'send-email'".

    Raises:
        RegistrationError: the annotation cannot be resolved, or values of it cannot be kept.
    """
    annotation = annotation_of(function, "return", where)
    # A plain function may hand out the coroutine of another one.
    if typing.get_origin(annotation) in _AWAITABLES:
        annotation = typing.get_args(annotation)[-1]
    return codec_for(annotation, where=where)


def parameter_codec(function: Callable[..., Any], parameter: str, where: str) -> Codec:
    """The codec of an argument, by the parameter's annotation; PLAIN without one. Raises as `result_codec`."""
    return codec_for(annotation_of(function, parameter, where), where=where)


def annotation_of(function: Callable[..., Any], name: str, where: str) -> Any:
    """The annotation of one parameter, or of "return", with names in text resolved; None without one.

    Only this annotation is looked at: others may hold names that exist for type checkers alone.

    Raises:
        RegistrationError: a name in it does not exist.
    """
    annotation = getattr(function, "__annotations__", {}).get(name)
    if annotation is None:
        return type(None) if name in getattr(function, "__annotations__", {}) else None
    plain = inspect.unwrap(function)
    names = getattr(plain, "__globals__", {})
    parameters = {one.__name__: one for one in getattr(plain, "__type_params__", ())}
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    try:
        return typing.get_type_hints(holder, names, {**names, **parameters}, include_extras=True)[name]
    except Exception as error:  # the text of an annotation is code of the user
        raise RegistrationError(
            f"{where}: the annotation {annotation!r} cannot be resolved: {error}; define or import its names at module"
            " level, not in a function and not under TYPE_CHECKING"
        ) from error
