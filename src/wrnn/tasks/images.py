"""Tasks that read an image as a sequence: splits, order and batching of a set that lives in memory as one tensor."""

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wrnn import data
from wrnn.checks import one_of, seed, whole_number
from wrnn.errors import ConfigError
from wrnn.seeds import generator
from wrnn.tasks.base import SequenceBatch, Task


class ImageTask(Task):
    """Images as sequences, sliced out of one uint8 tensor; on a GPU the set lives there.

    Args:
        train_set, test_set: what builds the torchvision data sets when called (`_partial_: true` in a config);
            validation is taken from the first.
        batch_size, eval_batch_size: sequences in a batch. Training drops an incomplete last batch.
        num_val: images held out of the training set.
        split_seed: seed of the held-out choice. None: the run seed, so every run has its own, as released.
        order_seed: seed of the order of the training images; the run seed.
        normalize: `none` leaves pixels in [0, 1]; `standard` makes the training set's pixels zero-mean, unit-variance.
    """

    def __init__(
        self,
        train_set: partial[Any],
        test_set: partial[Any],
        batch_size: int,
        eval_batch_size: int,
        num_val: int,
        split_seed: int | None,
        order_seed: int,
        normalize: str,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        self.train_set, self.test_set = train_set, test_set
        self.num_val = whole_number("task.datamodule.num_val", num_val)
        seed("task.datamodule.split_seed", split_seed, or_null=True)
        seed("task.datamodule.order_seed", order_seed)
        self.split_seed = order_seed if split_seed is None else split_seed
        self.order_seed = order_seed
        self.normalize = one_of("task.datamodule.normalize", normalize, ("none", "standard"))
        self.images: dict[str, Tensor] = {}  # by split: uint8, the layout of `arrange`
        self.labels: dict[str, Tensor] = {}
        self._shift_and_scale = (0.0, 1 / 255)
        self._fetched = False
        self._cached_order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def output_size(self) -> int:
        """10 classes."""
        return 10

    @abstractmethod
    def arrange(self, images: Tensor) -> Tensor:
        """Images (M, channels, H, W) uint8 -> the sequences that are kept, (M, ...) uint8. Called once a set."""

    @property
    def is_fixed(self) -> bool:
        """Whether a sequence is the same at every pass."""
        return True

    def to_inputs(self, images: Tensor, split: str, epoch: int, index: int) -> Tensor:
        """Arranged images of one batch, as floats (B, T, I), -> the inputs. May add what is drawn anew."""
        return images

    def prepare_data(self) -> None:
        """Make sure that the data are on this machine, once; see `wrnn.data.fetch`."""
        sources = {(found.func, found.keywords.get("root")): found for found in (self.train_set, self.test_set)}
        for factory in sources.values() if not self._fetched else ():
            data.fetch(factory)
        self._fetched = True

    def setup(self, stage: str | None = None) -> None:
        """Load, split and arrange the sets once."""
        if self.images:
            return
        data.check_classes(self.train_set, self.test_set)
        images, labels = data.load(self.train_set)
        if self.num_val > len(images) - self.batch_size:
            raise ConfigError(
                f"task.datamodule.num_val={self.num_val}: must leave at least one batch of {self.batch_size}"
                f" out of {len(images)} training images"
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
        train, val = order[: -self.num_val], order[-self.num_val :]
        test_images, test_labels = data.load(self.test_set)
        pieces = {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": (test_images, test_labels),
        }
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        self.images = {split: self.arrange(piece[0]).contiguous().to(device) for split, piece in pieces.items()}
        self.labels = {split: piece[1].to(device) for split, piece in pieces.items()}
        if self.normalize == "standard":
            pixels = self.images["train"].double()
            self._shift_and_scale = (float(pixels.mean()), 1 / float(pixels.std()))

    @property
    def shared_from(self) -> int | None:
        """See `SequenceBatch`."""
        return None

    def num_batches(self, split: str) -> int:
        """See `Task`."""
        self._load_if_need_be()
        if split == "train":
            return len(self.images["train"]) // self.batch_size
        return -(-len(self.images[split]) // self.eval_batch_size)

    def make_batch(self, split: str, epoch: int, index: int) -> SequenceBatch:
        """See `Task`. The order of the training images is a function of (seed, epoch)."""
        self._load_if_need_be()
        numbers = self._numbers(split, epoch, index)
        return SequenceBatch(
            self.to_inputs(self._pictures(split, numbers), split, epoch, index),
            self.labels[split][numbers],
            self.shared_from,
            numbers if self.is_fixed else None,
        )

    def _load_if_need_be(self) -> None:
        if not self.images:  # outside of a trainer
            self.prepare_data()
            self.setup()

    def sequences(self, split: str, numbers: Tensor) -> Tensor:
        """The inputs (B, T, I) of a split's sequences with these numbers (B,), for a task that is fixed."""
        return self.to_inputs(self._pictures(split, numbers), split, 0, 0)

    def _pictures(self, split: str, numbers: Tensor) -> Tensor:
        shift, scale = self._shift_and_scale
        return (self.images[split][numbers].float() - shift) * scale

    def _numbers(self, split: str, epoch: int, index: int) -> Tensor:
        labels = self.labels[split]
        if split == "train":
            return self._order(epoch)[index * self.batch_size :][: self.batch_size]
        first = index * self.eval_batch_size
        return torch.arange(first, min(first + self.eval_batch_size, len(labels)), device=labels.device)

    def _order(self, epoch: int) -> Tensor:
        if self._cached_order[0] != epoch:
            labels = self.labels["train"]
            order = torch.randperm(len(labels), generator=generator(self.order_seed, epoch)).to(labels.device)
            self._cached_order = (epoch, order)
        return self._cached_order[1]
