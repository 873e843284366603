"""What every task shares: the batch, the resumable stream of batches, and the facts a model is built from."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from wrnn.checks import whole_number
from wrnn.errors import ConfigError


class SequenceBatch(NamedTuple):
    """Inputs (B, T, I), floating point; targets as the task's objective reads them. Batch first.

    `shared_from`: the step from which on the inputs are the same for every sequence, if there is one; a core may
    compute their effect once. `numbers` (B,): which sequences of their split these are, where those are the same at
    every pass.
    """

    inputs: Tensor
    targets: Tensor
    shared_from: int | None = None
    numbers: Tensor | None = None


class BatchStream:
    """The batches of a split, made on demand: batch `index` of pass `epoch` depends on those two numbers alone.

    Its task keeps `state_dict` in checkpoints, so a run cut off in mid-epoch goes on with the very next batch.

    Args:
        make_batch: (epoch, index) -> SequenceBatch.
        num_batches: length of one pass.
    """

    def __init__(self, make_batch: Callable[[int, int], SequenceBatch], num_batches: int) -> None:
        self.make_batch = make_batch
        self.num_batches = num_batches
        self.seconds = 0.0  # spent making batches, for the share of a step that is data
        self._epoch, self._index = 0, 0
        self._at_start = True  # whether the next pass begins at (epoch, index), or at the pass after

    def __len__(self) -> int:
        """Batches in a pass."""
        return self.num_batches

    def __iter__(self) -> Iterator[SequenceBatch]:
        """One pass: from the first batch, or the rest of a pass that a checkpoint left unfinished."""
        if not self._at_start or self._index >= self.num_batches:
            self._epoch, self._index = self._epoch + 1, 0
        self._at_start = False
        while self._index < self.num_batches:
            epoch, index = self._epoch, self._index
            self._index += 1
            start = time.perf_counter()
            batch = self.make_batch(epoch, index)
            self.seconds += time.perf_counter() - start
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: pass and place in it."""
        return {"epoch": self._epoch, "index": self._index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._epoch, self._index = state["epoch"], state["index"]
        self._at_start = True


class Task(L.LightningDataModule, ABC):
    """A task: three streams of batches, and facts that are known before any data exists.

    A subclass makes the batches of a split; this class bundles them into streams.

    Args:
        batch_size: sequences in a training batch.
        eval_batch_size: sequences in a validation or test batch.
    """

    def __init__(self, batch_size: int, eval_batch_size: int) -> None:
        super().__init__()
        self.batch_size = whole_number("task.datamodule.batch_size", batch_size)
        self.eval_batch_size = whole_number("task.datamodule.eval_batch_size", eval_batch_size)
        self.train_stream: BatchStream | None = None
        self._position: dict[str, int] | None = None

    @property
    @abstractmethod
    def input_size(self) -> int:
        """I, features of an input step."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Width of the readout."""

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """T, steps of a sequence."""

    @abstractmethod
    def num_batches(self, split: str) -> int:
        """Batches in one pass over `train`, `val` or `test`."""

    @abstractmethod
    def make_batch(self, split: str, epoch: int, index: int) -> SequenceBatch:
        """Batch `index` of pass `epoch` over a split. Only `train` may depend on `epoch`."""

    def setup(self, stage: str | None = None) -> None:
        """Build what the batches need; a task that makes them up needs nothing."""

    def transfer_batch_to_device(
        self, batch: SequenceBatch, device: torch.device, dataloader_idx: int
    ) -> SequenceBatch:
        """From pinned memory to a GPU, so that the copy waits for nothing."""
        if device.type == "cuda" and not batch.inputs.is_cuda:
            batch = batch._replace(inputs=batch.inputs.pin_memory(), targets=batch.targets.pin_memory())
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def stream(self, split: str) -> BatchStream:
        """The batches of a split."""

        def make(epoch: int, index: int) -> SequenceBatch:
            batch = self.make_batch(split, epoch, index)
            if index == 0:
                self._check(batch.inputs)
            return batch

        return BatchStream(make, self.num_batches(split))

    def _check(self, inputs: Tensor) -> None:
        """Refuse inputs that are not what the task says. Raises: ConfigError."""
        steps = self.sequence_length, self.input_size
        if not inputs.is_floating_point() or inputs.ndim != 3 or inputs.shape[1:] != steps or not len(inputs):
            dtype = str(inputs.dtype).removeprefix("torch.")
            raise ConfigError(
                f"task: inputs are {dtype} of shape {tuple(inputs.shape)}; must be floating point of shape (B, T, I), "
                f"where sequence_length and input_size say that (T, I) = {steps}"
            )

    def train_dataloader(self) -> BatchStream:
        """Training batches; a pass is as long as `trainer.limit_train_batches` allows, so that passes stay in step.

        Raises: ConfigError where a limit leaves no batch to train, or a share of the others' comes to none.
        """
        self.train_stream = self.stream("train")
        if self.trainer is not None:
            limits = {split: self._limit(split) for split in ("train", "val", "test")}
            self.train_stream.num_batches = limits["train"]
            self.trainer.limit_train_batches = limits["train"]  # Lightning would take a share of the share
        if self._position is not None:
            self.train_stream.load_state_dict(self._position)
        return self.train_stream

    def _limit(self, split: str) -> int:
        """How many batches of a split the trainer takes."""
        assert self.trainer is not None
        name, length = f"limit_{split}_batches", self.num_batches(split)
        limit = getattr(self.trainer, name)
        count = length if limit is None else min(length, limit if isinstance(limit, int) else int(length * limit))
        if count < 1 and (split == "train" or limit != 0):
            raise ConfigError(f"trainer.{name}={limit}: leaves none of {length} batches")
        return count

    def state_dict(self) -> dict[str, int]:
        """Where training is in its stream. Lightning would restore it too, but not after a finished epoch."""
        return self.train_stream.state_dict() if self.train_stream is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Have the next training stream go on from there."""
        self._position = state_dict or None

    def val_dataloader(self) -> BatchStream:
        """Validation batches, the same ones at every pass."""
        return self.stream("val")

    def test_dataloader(self) -> BatchStream:
        """Test batches, the same ones at every pass."""
        return self.stream("test")
