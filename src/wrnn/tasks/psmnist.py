"""MNIST pixel by pixel, in order (sMNIST) or in one fixed random order (psMNIST)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from wrnn.checks import seed
from wrnn.errors import ConfigError
from wrnn.tasks.images import ImageTask

PIXELS = 784


class PixelMNIST(ImageTask):
    """One pixel a step, the digit after the last: inputs (B, 784, 1) in [0, 1], targets (B,) int64.

        inputs   .0 .0 .0 .5 .9 .3 ... .0    target 7

    Args:
        permuted: whether the pixels come in one random order, the same for every image and split.
        permutation_seed: which order; 12008 is the one of the coRNN and Lipschitz RNN code. Published results use
            different ones. None: the run seed, so every run has its own task, as released.
        train_set, test_set, batch_size, eval_batch_size, num_val, split_seed, order_seed, normalize: see `ImageTask`.

    Source: Le et al. 2015; Keller et al. 2024, section 3.
    """

    def __init__(
        self,
        train_set: partial[Any],
        test_set: partial[Any],
        permuted: bool,
        permutation_seed: int | None = 12008,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        num_val: int = 3000,
        split_seed: int | None = 0,
        order_seed: int = 0,
        normalize: str = "none",
    ) -> None:
        super().__init__(train_set, test_set, batch_size, eval_batch_size, num_val, split_seed, order_seed, normalize)
        seed("task.datamodule.permutation_seed", permutation_seed, or_null=True)
        drawn_by = torch.Generator().manual_seed(order_seed if permutation_seed is None else permutation_seed)
        self.order = torch.randperm(PIXELS, generator=drawn_by) if permuted else None

    @property
    def input_size(self) -> int:
        """1 pixel."""
        return 1

    @property
    def sequence_length(self) -> int:
        """784."""
        return PIXELS

    def arrange(self, images: Tensor) -> Tensor:
        """(M, 1, 28, 28) -> (M, 784, 1), row by row or permuted."""
        if images.shape[1:] != (1, 28, 28):
            raise ConfigError(f"images: must be grey 28 x 28, not {tuple(images.shape[1:])} (channels, height, width)")
        pixels = images.flatten(1)
        return (pixels if self.order is None else pixels[:, self.order]).unsqueeze(-1)
