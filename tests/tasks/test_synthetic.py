"""Copy and adding: what the sequences are, what an oracle and a fool score, and which seeds change what."""

import math

import pytest
import torch

from wrnn.objectives import RecallEveryStep, RegressLastStep
from wrnn.tasks import adding, copy
from wrnn.tasks.adding import Adding
from wrnn.tasks.copy import Copy


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_copy_in_the_layout_of_the_text() -> None:
    batch = copy.make_batch(50, 30, "text", random())
    symbols = batch.inputs.argmax(-1)
    assert symbols.shape == batch.targets.shape == (50, 50) and batch.inputs.sum(-1).eq(1).all()
    assert symbols[:, :10].min() == 1 and symbols[:, :10].max() == 8
    assert (symbols[:, 40] == 9).all() and not symbols[:, 10:40].any() and not symbols[:, 41:].any()
    assert torch.equal(batch.targets[:, 40:], symbols[:, :10]) and not batch.targets[:, :40].any()


def test_copy_in_the_layout_of_the_code() -> None:
    batch = copy.make_batch(50, 50, "code", random())
    symbols = batch.inputs.argmax(-1)
    assert symbols.shape == (50, 60) and (symbols[:, 49] == 9).all()
    assert torch.equal(batch.targets[:, 50:], symbols[:, :10])  # one step after the marker
    shortest = copy.make_batch(50, 10, "code", random())
    assert (shortest.targets[:, -1] == 9).all()  # the marker overwrote the tenth symbol


def test_a_model_without_memory_scores_what_is_computed() -> None:
    delay, metrics = 30, RecallEveryStep(10).metrics()
    batch = copy.make_batch(4000, delay, "text", random())
    logits = torch.full((4000, delay + 20, 10), -40.0)
    logits[:, :40, 0] = 0  # sure of the blanks
    logits[:, 40:, 1:9] = 0  # guesses among the symbols
    for metric in metrics.values():
        metric.update(logits, batch.targets)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found["cross_entropy"] == pytest.approx(10 * math.log(8) / (delay + 20), rel=1e-5)
    assert found["cross_entropy_over_50"] == pytest.approx(found["cross_entropy"] / 50)
    assert found["accuracy"] == pytest.approx(1 / 8, abs=0.01) and found["sequence_accuracy"] == 0
    assert found["mse"] == pytest.approx(10 / 50 * (7 / 8) / 10, rel=1e-5)  # (7/8)^2 + 7 (1/8)^2 = 7/8 a symbol


def test_the_oracle_of_copy_is_perfect_below_the_rounding_of_float32() -> None:
    batch = copy.make_batch(100, 5, "text", random())
    logits = torch.nn.functional.one_hot(batch.targets, 10) * 30.0
    metrics = RecallEveryStep(10).metrics()
    for metric in metrics.values():
        metric.update(logits, batch.targets)
    assert float(metrics["cross_entropy"].compute()) == pytest.approx(9 * math.exp(-30), rel=1e-4)
    assert float(metrics["sequence_accuracy"].compute()) == 1


def test_the_loss_can_be_divided_by_the_batch() -> None:
    batch = copy.make_batch(8, 5, "text", random())
    logits = torch.randn(8, 25, 10, generator=random())
    plain = RecallEveryStep(10).loss(logits, batch.targets)
    torch.testing.assert_close(RecallEveryStep(10, loss_scale="per_batch").loss(logits, batch.targets), plain / 8)


@pytest.mark.parametrize("length", [2, 7, 100])
def test_adding_marks_one_value_in_each_half(length: int) -> None:
    batch = adding.make_batch(3000, length, random())
    values, marks = batch.inputs.unbind(-1)
    half = length // 2
    assert marks[:, :half].sum(1).eq(1).all() and marks[:, half:].sum(1).eq(1).all()
    torch.testing.assert_close((values * marks).sum(1, keepdim=True), batch.targets)
    assert float(RegressLastStep(1).loss(torch.ones(3000, 1), batch.targets)) == pytest.approx(1 / 6, rel=0.1)


@pytest.mark.parametrize("make", [lambda s: Copy(5, order_seed=s), lambda s: Adding(10, order_seed=s)])
def test_the_run_seed_changes_training_data_and_nothing_else(make) -> None:
    one, same, other = make(1), make(1), make(2)
    assert torch.equal(one.make_batch("train", 3, 5).inputs, same.make_batch("train", 3, 5).inputs)
    assert not torch.equal(one.make_batch("train", 3, 5).inputs, other.make_batch("train", 3, 5).inputs)
    assert not torch.equal(one.make_batch("train", 3, 5).inputs, one.make_batch("train", 4, 5).inputs)
    for split in ("val", "test"):
        assert torch.equal(one.make_batch(split, 0, 0).inputs, other.make_batch(split, 7, 0).inputs)
    assert not torch.equal(one.make_batch("val", 0, 0).inputs, one.make_batch("test", 0, 0).inputs)


def test_the_fixed_sets_have_the_size_they_were_given() -> None:
    task = Adding(4, eval_batch_size=300, num_val=700, num_test=600)
    for split, size in (("val", 700), ("test", 600)):
        assert sum(len(batch.targets) for batch in task.stream(split)) == size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(-1), "delay=-1: must be a whole number of at least 0"),
        (lambda: Copy(9, layout="code"), "delay=9: must be a whole number of at least 10"),
        (lambda: Copy(9, layout="both"), "layout='both': must be one of text, code"),
        (lambda: Adding(1), "sequence_length=1: must be a whole number of at least 2"),
        (lambda: Adding(10, batch_size=0), "batch_size=0: must be a whole number of at least 1"),
        (lambda: Copy(9, eval_seed=None), "eval_seed=None: must be a whole number in .0, 2.63.$"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
