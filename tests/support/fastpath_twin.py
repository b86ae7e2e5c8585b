"""What zart._fastpath does, in plain Python: its specification. Property tests hold the two together."""

from __future__ import annotations

import json
import math
from typing import Any

from zart.errors import SerializationError

MAX_DEPTH = 200

_WORD = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def step_key(space: int, name: str) -> int:
    unsigned = xxh64(name.encode(), space)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def bucket_of(execution_id: str, buckets: int) -> int:
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    return xxh64(execution_id.encode(), 0) % buckets


def xxh64(data: bytes, seed: int) -> int:
    """XXH64, after xxhash_spec.md."""
    rest = data
    if len(data) >= 32:
        lanes = [(seed + _P1 + _P2) & _WORD, (seed + _P2) & _WORD, seed, (seed - _P1) & _WORD]
        while len(rest) >= 32:
            lanes = [_round(lane, _number(rest[8 * at : 8 * at + 8])) for at, lane in enumerate(lanes)]
            rest = rest[32:]
        digest = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _WORD
        for lane in lanes:
            digest = ((digest ^ _round(0, lane)) * _P1 + _P4) & _WORD
    else:
        digest = (seed + _P5) & _WORD
    digest = (digest + len(data)) & _WORD
    while len(rest) >= 8:
        digest = (_rotate(digest ^ _round(0, _number(rest[:8])), 27) * _P1 + _P4) & _WORD
        rest = rest[8:]
    if len(rest) >= 4:
        digest = (_rotate(digest ^ _number(rest[:4]) * _P1 & _WORD, 23) * _P2 + _P3) & _WORD
        rest = rest[4:]
    for byte in rest:
        digest = _rotate(digest ^ byte * _P5 & _WORD, 11) * _P1 & _WORD
    digest = (digest ^ digest >> 33) * _P2 & _WORD
    digest = (digest ^ digest >> 29) * _P3 & _WORD
    return digest ^ digest >> 32


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _WORD, 31) * _P1 & _WORD


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _WORD


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def encode_plain(value: Any) -> bytes:
    _check(value, "$", 0)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _check(value: Any, path: str, depth: int) -> None:
    """The first part that does not survive, in the order of the JSON text, is the one that is named."""
    kind = type(value)
    if value is None or kind is bool:
        return
    elif kind is str:
        _check_text(value, path, "text")
    elif kind is int:
        if not -(2**63) <= value < 2**63:
            raise _refusal("int of more than 64 bits", path)
    elif kind is float:
        if not math.isfinite(value):
            raise _refusal(f"float {value} has no JSON form", path)
    elif kind not in (dict, list, tuple):
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        raise _refusal(f"a value of type {name} would not come back as itself", path)
    elif depth >= MAX_DEPTH:
        raise _refusal(f"nested more than {MAX_DEPTH} deep", path)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise _refusal("dict key of type", path)
            _check_text(key, path, "dict key")
            _check(item, path + _member(key), depth + 1)
    else:
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)


def _check_text(text: str, path: str, what: str) -> None:
    if "\0" in text:
        raise _refusal(f"{what} holds a NUL character", path)
    for index, character in enumerate(text):
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise _refusal(f"{what} holds a lone surrogate at index {index}", path)


def _refusal(fact: str, path: str) -> SerializationError:
    return SerializationError(fact, path=path if len(path) <= 200 else f"{path[:120]}...{path[-60:]}")


def _member(key: str) -> str:
    return f".{key}" if key.isidentifier() and key.isascii() else f"[{json.dumps(key)}]"
