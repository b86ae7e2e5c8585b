"""The arguments of a step that another worker may run: kept by name, each by its parameter's annotation."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from zart.annotations import annotation_of
from zart.codec import Codec, codec_for
from zart.errors import SerializationError

_read_object: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Arguments:
    """One call's arguments, to be given to its function."""

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArgumentsCodec(Codec):
    """How the arguments of one function are kept: a JSON object by parameter, defaults that were not given left out.

    Example:
        >>> ArgumentsCodec.of(provision, "step 'provision'").encode(Arguments(("eu",), {}))
        b'{"region":"eu"}'
    """

    annotation: inspect.Signature
    codecs: Mapping[str, Codec]

    @classmethod
    def of(cls, function: Callable[..., Any], what: str, *, is_method: bool = False) -> ArgumentsCodec:
        """The codec of a function's arguments.

        Args:
            what: whose they are, as "step 'provision'".
            is_method: leave out the first parameter.

        Raises:
            RegistrationError: an annotation cannot be resolved, or values of it cannot be kept.
        """
        signature = inspect.signature(function)
        if is_method:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        codecs = {
            name: codec_for(_annotation(function, parameter, what), where=f"argument {name!r} of {what}")
            for name, parameter in signature.parameters.items()
        }
        return cls(signature, codecs)

    def encode(self, value: Arguments) -> bytes:
        """The arguments as JSON.

        Raises:
            SerializationError: one would not come back as it is.
            TypeError: the function does not take them.
        """
        bound = self.annotation.bind(*value.positional, **value.keywords).arguments
        return orjson.dumps({name: orjson.Fragment(self._encoded(name, one)) for name, one in bound.items()})

    def round_trip(self, value: Arguments) -> tuple[bytes, Arguments]:
        data = self.encode(value)
        return data, self.decode(data)

    def decode(self, data: str | bytes) -> Arguments:
        try:
            stored = _read_object.decode(data)
        except msgspec.DecodeError as error:
            raise SerializationError(f"it is no object of arguments: {error}", misfit=True) from error
        if unknown := next((name for name in stored if name not in self.codecs), None):
            raise SerializationError("the function has no such parameter", path=f"$.{unknown}", misfit=True)
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for name, parameter in self.annotation.parameters.items():
            if name in stored:
                value = self._decoded(name, stored[name])
                if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                    positional += value
                elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    keywords |= value
                elif parameter.kind in _POSITIONAL and len(positional) == self._before(name):
                    positional.append(value)
                else:
                    keywords[name] = value
            elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                raise SerializationError(
                    "it is missing, and the parameter has no default", path=f"$.{name}", misfit=True
                )
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(parameter.default)
        return Arguments(tuple(positional), keywords)

    def _before(self, name: str) -> int:
        return list(self.codecs).index(name)

    def _encoded(self, name: str, value: Any) -> bytes:
        try:
            return self.codecs[name].encode(value)
        except SerializationError as error:
            raise self._of_argument(name, error) from error.__cause__

    def _decoded(self, name: str, data: msgspec.Raw) -> Any:
        try:
            return self.codecs[name].decode(bytes(data))
        except SerializationError as error:
            raise self._of_argument(name, error) from error.__cause__

    def _of_argument(self, name: str, error: SerializationError) -> SerializationError:
        """The same error, with a path that begins at the arguments."""
        return SerializationError(error.reason, path=f"$.{name}{error.path.removeprefix('$')}", misfit=error.misfit)


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, what: str) -> Any:
    given: Any = annotation_of(function, parameter.name, f"argument {parameter.name!r} of {what}")
    element = Any if given is None else given
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return types.GenericAlias(list, (element,))
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return types.GenericAlias(dict, (str, element))
    return given
