"""How exact numbers are: float32 products on a GPU, and what is nearly 0 on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("highest", "high", "medium")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Compute float32 products with all their bits (`highest`) or with fewer, as torch names it; process-wide.

    That goes for torch's products, for our kernels, and for cuDNN, which left alone takes TF32.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def without_denormals() -> Iterator[None]:
    """Take numbers below 1.2e-38 (float32) for 0, where the CPU can and in the thread that asks; afterwards no more.

    Gradients that vanish over a long sequence end there, and arithmetic with them is many times slower: a GRU's
    training step on psMNIST takes eight times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
