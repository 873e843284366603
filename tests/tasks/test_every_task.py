"""What every task promises; newcomers are found by listing conf/task."""

import pytest
import torch

from conftest import Compose, option_names
from test_conf import offline
from wrnn.tasks.base import SequenceBatch, Task
from wrnn.training import build

TASKS = option_names("task")


def batch(compose_config: Compose, task: str, split: str, *overrides: str) -> tuple[Task, SequenceBatch]:
    small = ["task.datamodule.sequence_length=40"] if task == "nscifar10" else []
    parts = build(compose_config(*offline(compose_config, f"task={task}", *small, *overrides)))
    parts.task.prepare_data()
    parts.task.setup()
    return parts.task, parts.task.make_batch(split, 0, 0)


def same(one: SequenceBatch, other: SequenceBatch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_has_the_shape_it_says_and_is_a_function_of_its_seeds(
    compose_config: Compose, task: str, split: str
) -> None:
    made, first = batch(compose_config, task, split, "seed=0")
    assert first.inputs.dtype == torch.float32
    assert first.inputs.shape[1:] == (made.sequence_length, made.input_size)
    torch.manual_seed(1)  # nothing may be drawn from torch's own generator
    assert same(first, made.make_batch(split, 0, 0))
    _, other = batch(compose_config, task, split, "seed=1")
    assert same(first, other) == (split != "train"), "all seeds validate on the same data and train on others"
