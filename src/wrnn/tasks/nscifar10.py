"""CIFAR-10 row by row, then hundreds of steps of noise: remember the image, ignore what follows."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from wrnn.checks import one_of, seed, whole_number
from wrnn.errors import ConfigError
from wrnn.seeds import generator
from wrnn.tasks.images import ImageTask

ROWS, ROW_SIZE = 32, 96
_SPLITS = ("train", "val", "test")


class NoisyRows(ImageTask):
    """32 image rows, then standard-normal noise up to T steps: inputs (B, T, 96), targets (B,) int64.

        step      0 ... 31                            32 ... T-1
        inputs    one row each: 32 R, 32 G, 32 B      96 numbers from N(0, 1)        target: class after the last step

    Args:
        sequence_length: T, at least 32.
        noise: `fixed`, one draw shared by every image, split and epoch: a known constant drive, and what every number
            of the paper's Table 3 is; `per_batch` or `per_sample`, drawn anew for each, the task as it was described.
            Results of different modes must not be compared.
        noise_seed: seed of all draws, independent of the run seed. None: the run seed.
        train_set, test_set, batch_size, eval_batch_size, num_val, split_seed, order_seed, normalize: see `ImageTask`.

    Source: Chang et al. 2019; Keller et al. 2024, section 3.
    """

    def __init__(
        self,
        train_set: partial[Any],
        test_set: partial[Any],
        sequence_length: int = 1000,
        noise: str = "fixed",
        noise_seed: int | None = 0,
        batch_size: int = 256,
        eval_batch_size: int = 500,
        num_val: int = 3000,
        split_seed: int | None = 0,
        order_seed: int = 0,
        normalize: str = "none",
    ) -> None:
        super().__init__(train_set, test_set, batch_size, eval_batch_size, num_val, split_seed, order_seed, normalize)
        self._sequence_length = whole_number("task.datamodule.sequence_length", sequence_length, minimum=ROWS)
        self.noise = one_of("task.datamodule.noise", noise, ("fixed", "per_batch", "per_sample"))
        seed("task.datamodule.noise_seed", noise_seed, or_null=True)
        self.noise_seed = order_seed if noise_seed is None else noise_seed
        self._fixed_noise = self._draw(1, generator(self.noise_seed))

    @property
    def input_size(self) -> int:
        """96: one row of three colours."""
        return ROW_SIZE

    @property
    def sequence_length(self) -> int:
        """T."""
        return self._sequence_length

    @property
    def shared_from(self) -> int | None:
        """32 where a batch has one noise."""
        return None if self.noise == "per_sample" or self.sequence_length == ROWS else ROWS

    @property
    def is_fixed(self) -> bool:
        """Where there is but one noise."""
        return self.noise == "fixed"

    def arrange(self, images: Tensor) -> Tensor:
        """(M, 3, 32, 32) -> (M, 32, 96): row by row, each [32 R, 32 G, 32 B]."""
        if images.shape[1:] != (3, 32, 32):
            raise ConfigError(f"images: must be RGB 32 x 32, not {tuple(images.shape[1:])} (channels, height, width)")
        return images.transpose(1, 2).flatten(2)

    def to_inputs(self, images: Tensor, split: str, epoch: int, index: int) -> Tensor:
        """(B, 32, 96) -> (B, T, 96)."""
        if self.noise == "fixed":
            noise = self._fixed_noise = self._fixed_noise.to(images.device)
        else:
            draws = len(images) if self.noise == "per_sample" else 1
            seeds = (self.noise_seed, _SPLITS.index(split), epoch if split == "train" else 0, index)
            noise = self._draw(draws, generator(*seeds))
            noise = (noise.pin_memory() if images.is_cuda else noise).to(images.device, non_blocking=True)
        return torch.cat([images, noise.expand(len(images), -1, -1)], dim=1)

    def _draw(self, num_draws: int, random: torch.Generator) -> Tensor:
        return torch.randn(num_draws, self.sequence_length - ROWS, ROW_SIZE, generator=random)
