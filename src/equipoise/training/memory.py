"""What a device or a host without memory left says, as a sentence with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from equipoise.core.errors import WorkFailed

# Only CUDA has a type for it: the CPU's allocator and MPS raise a plain RuntimeError.
_SAID = ("not enough memory", "out of memory")


@contextmanager
def memory_advice(what: str, remedy: str) -> Iterator[None]:
    """Turns running out of memory into WorkFailed: "Out of memory {what}: {remedy}."."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if told or any(words in str(error).lower() for words in _SAID):
            raise WorkFailed(f"Out of memory {what}: {remedy}.") from error
        raise
