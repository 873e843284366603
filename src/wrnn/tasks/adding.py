"""The adding problem: remember two marked numbers of a long stream and give their sum."""

import torch

from wrnn.checks import whole_number
from wrnn.tasks.base import SequenceBatch
from wrnn.tasks.synthetic import SyntheticTask


def make_batch(num_sequences: int, sequence_length: int, random: torch.Generator) -> SequenceBatch:
    """Draw adding sequences: inputs (B, T, 2) float32, targets (B, 1) float32.

    Feature 0 is uniform on [0, 1); feature 1 marks one step in the first half and one in the second:

        values   .3 .9 .1 .5 .7 .2
        marks     0  1  0  0  1  0     target .9 + .7 = 1.6

    The half of an odd T is T // 2 steps. Source: Hochreiter & Schmidhuber 1997, in the form of Le et al. 2015.
    """
    values_BT = torch.rand(num_sequences, sequence_length, generator=random)
    half = sequence_length // 2
    first_B1 = torch.randint(0, half, (num_sequences, 1), generator=random)
    second_B1 = torch.randint(half, sequence_length, (num_sequences, 1), generator=random)
    marks_BT = torch.zeros_like(values_BT).scatter_(1, first_B1, 1.0).scatter_(1, second_B1, 1.0)
    targets_B1 = values_BT.gather(1, first_B1) + values_BT.gather(1, second_B1)
    return SequenceBatch(torch.stack([values_BT, marks_BT], dim=-1), targets_B1)


class Adding(SyntheticTask):
    """The adding problem of Keller et al. 2024, section 3. Answering 1 always scores a mean squared error of 1/6.

    Args:
        sequence_length: T, at least 2.
        batch_size, eval_batch_size, batches_per_epoch, num_val, num_test, order_seed, eval_seed: see `SyntheticTask`.
    """

    def __init__(
        self,
        sequence_length: int,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        batches_per_epoch: int = 100,
        num_val: int = 1000,
        num_test: int = 10_000,
        order_seed: int = 0,
        eval_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, batches_per_epoch, num_val, num_test, order_seed, eval_seed)
        self._sequence_length = whole_number("task.datamodule.sequence_length", sequence_length, minimum=2)

    @property
    def input_size(self) -> int:
        """2: the value and its mark."""
        return 2

    @property
    def output_size(self) -> int:
        """1: the sum."""
        return 1

    @property
    def sequence_length(self) -> int:
        """T."""
        return self._sequence_length

    def generate(self, num_sequences: int, random: torch.Generator) -> SequenceBatch:
        """See `make_batch`."""
        return make_batch(num_sequences, self.sequence_length, random)
