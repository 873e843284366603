"""Image tasks: layout of the sequences, splits, order, noise. On made-up pictures."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import FakeData

from wrnn.tasks.base import BatchStream, SequenceBatch, Task
from wrnn.tasks.nscifar10 import NoisyRows
from wrnn.tasks.psmnist import PixelMNIST


class Countable(FakeData):
    """Pictures that say which they are: the first pixel is the index, the others count up."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        channels, height, width = self.image_size
        pixels = (np.arange(channels * height * width) % 251).astype(np.uint8).reshape(channels, height, width)
        pixels[0, 0, 0] = index
        return Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)), index % 10


GREY = {"train_set": partial(Countable, 200, (1, 28, 28)), "test_set": partial(Countable, 30, (1, 28, 28))}
COLOUR = {"train_set": partial(Countable, 60, (3, 32, 32)), "test_set": partial(Countable, 30, (3, 32, 32))}


def grey(**options: Any) -> PixelMNIST:
    task = PixelMNIST(**GREY, **{"permuted": False, "batch_size": 16, "num_val": 40, **options})
    task.prepare_data()
    task.setup()
    return task


def colour(**options: Any) -> NoisyRows:
    task = NoisyRows(**COLOUR, **{"sequence_length": 40, "batch_size": 8, "num_val": 20, **options})
    task.setup()
    return task


def test_pixels_come_row_by_row_or_in_one_fixed_order() -> None:
    plain, permuted = grey(), grey(permuted=True)
    expected = (torch.arange(784) % 251).float() / 255
    inputs = plain.make_batch("test", 0, 0).inputs
    assert inputs.shape == (30, 784, 1) and torch.allclose(inputs[5, 1:, 0], expected[1:])
    order = torch.randperm(784, generator=torch.Generator().manual_seed(12008))
    for split in ("train", "val", "test"):
        assert torch.equal(permuted.images[split][:, :, 0], plain.images[split][:, order, 0])


@pytest.mark.parametrize("make", [grey, colour])
def test_every_picture_keeps_its_label(make: Callable[..., Task]) -> None:
    task = make(eval_batch_size=10)
    for split, epoch, index in itertools.product(("train", "val", "test"), (0, 1), (0, 1)):
        batch = task.make_batch(split, epoch, index)
        assert torch.equal(batch.targets, (batch.inputs[:, 0, 0] * 255).round().long() % 10)


def test_splits_are_disjoint_complete_and_independent_of_the_run_seed() -> None:
    one, other = grey(order_seed=1), grey(order_seed=2)
    train, val = (set(one.images[split][:, 0, 0].tolist()) for split in ("train", "val"))
    assert not train & val and train | val == set(range(200)) and len(val) == 40
    assert torch.equal(one.images["val"], other.images["val"])
    assert not torch.equal(one.make_batch("train", 0, 0).inputs, other.make_batch("train", 0, 0).inputs)
    unfixed = grey(order_seed=1, split_seed=None), grey(order_seed=2, split_seed=None)
    assert not torch.equal(unfixed[0].images["val"], unfixed[1].images["val"])


def test_a_pass_sees_each_training_image_at_most_once_in_an_order_of_its_own() -> None:
    task = grey()
    passes = [[task.make_batch("train", epoch, i).inputs[:, 0, 0] * 255 for i in range(10)] for epoch in (0, 1)]
    seen = [torch.cat(batches).round().int().tolist() for batches in passes]
    assert len(set(seen[0])) == 160 and seen[0] != seen[1] and set(seen[0]) == set(seen[1])


def test_rows_are_red_green_blue_and_noise_follows() -> None:
    task = colour()
    inputs = task.make_batch("test", 0, 0).inputs
    assert inputs.shape == (30, 40, 96)
    pixels = ((torch.arange(3 * 32 * 32) % 251).float() / 255).view(3, 32, 32)
    assert torch.allclose(inputs[3, 4], torch.cat([pixels[0, 4], pixels[1, 4], pixels[2, 4]]))
    assert 0.9 < float(inputs[:, 32:].std()) < 1.1


@pytest.mark.parametrize("mode", ["fixed", "per_batch", "per_sample"])
def test_noise_is_shared_as_its_mode_says(mode: str) -> None:
    task = colour(noise=mode)
    first = task.make_batch("train", 0, 0)
    noise, is_shared = first.inputs[:, 32:], mode != "per_sample"
    assert torch.equal(noise[0], noise[1]) == is_shared and first.shared_from == (32 if is_shared else None)
    for epoch, index in ((1, 0), (0, 1)):
        assert torch.equal(noise, task.make_batch("train", epoch, index).inputs[:, 32:]) == (mode == "fixed")
    assert torch.equal(task.make_batch("val", 0, 0).inputs, task.make_batch("val", 5, 0).inputs)


def test_standardised_pixels_have_unit_variance() -> None:
    task = grey(normalize="standard")
    inputs = torch.cat([task.make_batch("train", 0, i).inputs for i in range(10)])
    assert abs(float(inputs.mean())) < 1e-4 and float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_a_stream_goes_on_where_a_checkpoint_left_it() -> None:
    def make(epoch: int, index: int) -> SequenceBatch:
        return SequenceBatch(torch.tensor([epoch, index]), torch.empty(0))

    def rest(stream: BatchStream) -> list[list[int]]:
        return [batch.inputs.tolist() for batch in stream]

    whole = BatchStream(make, 3)
    iterator = iter(whole)
    next(iterator), next(iterator)
    resumed = BatchStream(make, 3)
    resumed.load_state_dict(whole.state_dict())
    assert rest(resumed) == [[0, 2]] and rest(resumed) == [[1, 0], [1, 1], [1, 2]]
    finished = BatchStream(make, 3)
    finished.load_state_dict(resumed.state_dict())
    assert rest(finished) == [[2, 0], [2, 1], [2, 2]]
    assert next(iter(finished)).inputs.tolist() == [3, 0]
    assert next(iter(finished)).inputs.tolist() == [4, 0]  # a pass that was cut short is over


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grey(num_val=190), "num_val=190: must leave at least one batch of 16 out of 200"),
        (lambda: PixelMNIST(**COLOUR, permuted=False, batch_size=8, num_val=20).setup(), "grey 28 x 28"),
        (lambda: colour(sequence_length=31), "sequence_length=31: must be a whole number of at least 32"),
        (lambda: colour(noise="pink"), "noise='pink': must be one of fixed, per_batch, per_sample"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
