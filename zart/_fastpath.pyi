"""Types of the native module: step keys, buckets and the plain encoding. No I/O."""

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_DEPTH: Final[int]
"""Most containers inside each other that `encode_plain` takes."""

def step_key(space: int, name: str) -> int:
    """XXH64 of the UTF-8 name with seed `space`, as a signed 64-bit number.

    Raises:
        UnicodeEncodeError: the name holds a lone surrogate.
    """

def bucket_of(execution_id: str, buckets: int) -> int:
    """XXH64 (seed 0) of the UTF-8 id, unsigned, modulo `buckets`.

    Raises:
        ValueError: `buckets` is less than 1.
    """

def encode_plain(value: Any) -> bytes:
    """The value as JSON, if exactly this value comes back (a tuple comes back as a list).

    Takes None, bool, int of 64 bits, finite float, str, list, tuple and dict with str keys, of exactly these types.

    Raises:
        SerializationError: anything else, naming path, type and remedy.
    """

class Attribution:
    """Notes in one word of shared memory whose code an event loop runs, for whoever finds the process dead.

    Args:
        words: signed 64-bit integers, contiguous and writable.
        offset: which of them.
    """

    def __init__(self, words: memoryview[int], offset: int) -> None: ...
    def wrap(self, coroutine: Coroutine[Any, Any, T], claim_id: int) -> Coroutine[Any, Any, T]:
        """The same coroutine; while it runs, the word holds `claim_id`, while it waits, 0."""
