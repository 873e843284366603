"""Tasks whose sequences are made up: an endless training stream, fixed validation and test sets."""

from abc import abstractmethod

import torch

from wrnn.checks import seed, whole_number
from wrnn.seeds import generator
from wrnn.tasks.base import SequenceBatch, Task

_SPLITS = ("train", "val", "test")


class SyntheticTask(Task):
    """Fresh sequences at every training step; validation and test sets that no run seed changes.

    Args:
        batch_size, eval_batch_size: sequences in a batch.
        batches_per_epoch: training steps between two validations.
        num_val, num_test: sequences in the fixed sets.
        order_seed: seed of the training stream; `${seed}` in the config, or runs of all seeds train on the same data.
        eval_seed: seed of the fixed sets; the same for all runs.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        batches_per_epoch: int = 100,
        num_val: int = 1000,
        num_test: int = 10_000,
        order_seed: int = 0,
        eval_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.batches_per_epoch = whole_number("task.datamodule.batches_per_epoch", batches_per_epoch)
        self.num_sequences = {
            "val": whole_number("task.datamodule.num_val", num_val),
            "test": whole_number("task.datamodule.num_test", num_test),
        }
        seed("task.datamodule.order_seed", order_seed)
        seed("task.datamodule.eval_seed", eval_seed)
        self.order_seed, self.eval_seed = order_seed, eval_seed

    @abstractmethod
    def generate(self, num_sequences: int, random: torch.Generator) -> SequenceBatch:
        """Draw that many sequences: inputs (B, T, I) float32 and the targets of the objective, all from `random`."""

    def num_batches(self, split: str) -> int:
        """See `Task`."""
        if split == "train":
            return self.batches_per_epoch
        return -(-self.num_sequences[split] // self.eval_batch_size)

    def make_batch(self, split: str, epoch: int, index: int) -> SequenceBatch:
        """See `Task`. The draw depends on (seed, split, epoch, index)."""
        if split == "train":
            return self.generate(self.batch_size, generator(self.order_seed, 0, epoch, index))
        size = min(self.eval_batch_size, self.num_sequences[split] - index * self.eval_batch_size)
        return self.generate(size, generator(self.eval_seed, _SPLITS.index(split), index))
