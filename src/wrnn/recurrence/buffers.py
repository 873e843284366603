"""Large buffers on the CPU, used again: fresh pages cost more than the arithmetic that fills them."""

import ctypes
import math
import mmap
import threading
import weakref

import torch
from torch import Tensor

_FREE: list[mmap.mmap] = []
_LOCK = threading.Lock()
_SMALLEST = 2**20  # bytes; below this the allocator of torch is as good


def borrow(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised tensor of the dtype and device of `like`.

    Its memory is lent again when nothing uses it any more: no tensor, no view and no graph, whoever holds them.
    """
    numel, nbytes = math.prod(shape), math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or nbytes < _SMALLEST:
        return like.new_empty(shape)
    memory = _take(nbytes)
    lease = (ctypes.c_char * nbytes).from_buffer(memory)  # lives as long as the storage of the tensor
    weakref.finalize(lease, _give_back, memory).atexit = False
    return torch.frombuffer(lease, dtype=like.dtype, count=numel).view(shape)


def _take(nbytes: int) -> mmap.mmap:
    with _LOCK:
        fitting = [memory for memory in _FREE if nbytes <= len(memory) <= 4 * nbytes]
        if fitting:
            chosen = min(fitting, key=len)
            _FREE.remove(chosen)
            return chosen
        _FREE.clear()  # sizes have changed
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages
    return memory


def _give_back(memory: mmap.mmap) -> None:
    with _LOCK:
        _FREE.append(memory)
