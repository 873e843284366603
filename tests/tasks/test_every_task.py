"""What every task promises; newcomers are found by listing conf/task. And what is said of one that breaks it."""

import pytest
import torch

from conftest import TINY_COPY, Compose, option_names
from test_conf import offline
from wrnn.errors import ConfigError
from wrnn.objectives import ClassifyLastStep, Objective, RegressLastStep
from wrnn.tasks.base import SequenceBatch, Task
from wrnn.tasks.copy import Copy
from wrnn.training import build, train

TASKS = option_names("task")


def batch(compose_config: Compose, task: str, split: str, *overrides: str) -> tuple[Task, SequenceBatch]:
    small = ["task.datamodule.sequence_length=40"] if task == "nscifar10" else []
    parts = build(compose_config(*offline(compose_config, f"task={task}", *small, *overrides)))
    parts.task.prepare_data()
    parts.task.setup()
    first = parts.task.make_batch(split, 0, 0)
    parts.objective.check(first.inputs, first.targets)
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
    assert made.num_batches(split) < 2 or not torch.equal(first.inputs, made.make_batch(split, 0, 1).inputs)
    _, other = batch(compose_config, task, split, "seed=1")
    assert same(first, other) == (split != "train"), "all seeds validate on the same data and train on others"


@pytest.mark.parametrize(
    ("objective", "targets", "said"),
    [
        (
            ClassifyLastStep(4),
            torch.tensor([[0], [3]]),
            r"int64 of shape \(2, 1\); must be int64 of shape \(B,\) = \(2,\)",
        ),
        (ClassifyLastStep(4), torch.tensor([0.0, 3.0]), r"float32 of shape \(2,\); must be int64"),
        (ClassifyLastStep(4), torch.tensor([0, 4]), r"targets are in \[0, 4\]; must be in \[0, 3\]"),
        (ClassifyLastStep(4), torch.tensor([-100, 3]), r"targets are in \[-100, 3\]; must be in \[0, 3\]"),
        (RegressLastStep(1), torch.zeros(2), r"shape \(2,\); must be of shape \(B, O\) = \(2, 1\)"),
    ],
)
def test_targets_that_an_objective_cannot_read(objective: Objective, targets: torch.Tensor, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        objective.check(torch.zeros(2, 5, 1), targets)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("broken", ["inputs", "targets"])
def test_a_batch_that_breaks_its_promise_is_refused_in_every_split(
    compose_config: Compose, monkeypatch: pytest.MonkeyPatch, split: str, broken: str
) -> None:
    make = Copy.make_batch

    def make_batch(task: Copy, name: str, epoch: int, index: int) -> SequenceBatch:
        made = make(task, name, epoch, index)
        return made._replace(**{broken: getattr(made, broken)[:, 1:]}) if name == split else made

    monkeypatch.setattr(Copy, "make_batch", make_batch)
    with pytest.raises(ConfigError, match=f"task: {broken} are .* of shape .*; must be"):
        train(compose_config(*TINY_COPY))
