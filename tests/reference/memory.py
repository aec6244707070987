"""Measure the memory of tensors and count objects that a test has created."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Hide existing objects from the garbage collector, so that objects of other tests are not counted."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tensor_bytes() -> int:
    """Return the bytes held by all tensors that the garbage collector sees, each storage counted once."""
    found = {}
    for each in gc.get_objects():
        # isinstance would trigger the warnings of deprecated objects; sparse tensors have no storage.
        if issubclass(type(each), torch.Tensor) and each.layout == torch.strided:
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(found.values())


def count(kind: type) -> int:
    """Return how many objects of a class the garbage collector sees; subclasses are not counted."""
    return sum(type(each) is kind for each in gc.get_objects())
