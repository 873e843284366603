"""Weights, split, permutation, noise and the order of the training data each have a seed that changes nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Compose
from wrnn.runs import environment
from wrnn.training import build

SMALL = ("model=wrnn", "model.core.num_channels=1", "model.core.ring_size=5", "task.datamodule.num_val=8",
         "task.datamodule.batch_size=4", "input_init=pytorch", "init=pytorch")  # fmt: skip
TASKS = {"psmnist": ("task=psmnist", "images=fake_mnist"), "nscifar10": ("task=nscifar10", "images=fake_cifar10")}


def drawn(cfg: Any) -> dict[str, Tensor]:
    """What each seed decides, measured so that the others do not show in it."""
    parts = build(cfg)
    parts.task.setup()
    batch = parts.task.make_batch("train", 0, 0)
    val = parts.task.make_batch("val", 0, 0).inputs
    pixels = val[:, :784] if cfg.task.name == "psmnist" else val[:, :32]
    assert batch.numbers is not None
    return {
        "weights": torch.cat([weight.detach().flatten() for weight in parts.module.parameters()]),
        "order": batch.numbers,
        "split": pixels.flatten(1).sort().values.sort(0).values,
        "permutation": parts.task.make_batch("test", 0, 0).inputs[0, :784, 0],
        "noise": val[0, 32:] if cfg.task.name == "nscifar10" else torch.zeros(()),
    }


@pytest.mark.parametrize(
    ("task", "key", "changed"),
    [
        ("psmnist", "seed", {"weights", "order"}),
        ("psmnist", "task.datamodule.order_seed", {"order"}),
        ("psmnist", "task.datamodule.split_seed", {"split"}),
        ("psmnist", "task.datamodule.permutation_seed", {"permutation"}),
        ("nscifar10", "seed", {"weights", "order"}),
        ("nscifar10", "task.datamodule.split_seed", {"split"}),
        ("nscifar10", "task.datamodule.noise_seed", {"noise"}),
    ],
)
def test_a_seed_changes_what_it_is_of_and_nothing_else(
    compose_config: Compose, task: str, key: str, changed: set[str]
) -> None:
    words = (*SMALL, *TASKS[task])
    cfg = compose_config(*words, f"{key}=7")
    usual, other = drawn(compose_config(*words)), drawn(cfg)
    if task == "nscifar10":
        usual.pop("permutation"), other.pop("permutation")  # there, of rows and noise
    assert {what for what in usual if not torch.equal(usual[what], other[what])} == changed
    assert environment(cfg)["seeds"][key.rpartition(".")[2]] == 7
