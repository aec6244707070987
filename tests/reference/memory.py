"""What is held in memory, of all that a test itself made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Hide from the collector what is there already, so that what other tests left is neither counted nor looked at."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tensor_bytes() -> int:
    """Return the size of what all tensors the collector sees hold, each storage once."""
    found = {}
    for each in gc.get_objects():
        # isinstance would ask deprecated objects for their class; sparse tensors have no storage.
        if issubclass(type(each), torch.Tensor) and each.layout == torch.strided:
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(found.values())


def count(kind: type) -> int:
    """Return how many objects of a class the collector sees."""
    return sum(type(each) is kind for each in gc.get_objects())
