"""How exact float32 products are on a GPU."""

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
