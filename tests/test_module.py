"""The module's recorded training step, without a GPU to record it on."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from conftest import TINY_COPY, Compose
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.errors import ConfigError
from wrnn.loggers import read_metrics
from wrnn.precision import float32_products, without_denormals
from wrnn.training import build, load_run, train


def test_a_recorded_step_is_the_same_step(compose_config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build(compose_config(*TINY_COPY))
    keys, recordings = list(parts.module.state_dict()), []

    def record(step: nn.Module, samples: tuple[torch.Tensor, ...]) -> None:
        """As CUDA graphs do: compute from memory of their own, into which each batch is copied."""
        recordings.append(step)
        forward = step.forward

        def replay(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for sample, argument in zip(samples, arguments, strict=True):
                sample.copy_(argument)
            return forward(*samples)

        step.forward = replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    for index in range(3):
        batch = parts.task.make_batch("train", 0, index)
        before = batch.inputs.clone(), batch.targets.clone()
        loss, outputs = parts.module.replayed(batch)
        expected = parts.module._loss_and_outputs(batch.inputs, batch.targets, None)
        assert torch.equal(loss, expected[0]) and torch.equal(outputs, expected[1]) and loss.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=False))
    assert len(recordings) == 1 and list(parts.module.state_dict()) == keys


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("irnn", "needs one CUDA GPU, not cpu"),
        ("indrnn", "a core that draws numbers or counts statistics cannot be recorded, as model=indrnn"),
        ("exprnn", "a core that waits for the GPU within a step cannot be recorded, as model=exprnn"),
    ],
)
def test_cuda_graphs_are_refused_where_they_would_not_be_the_same(
    compose_config: Compose, tmp_path, model: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"cuda_graphs=true: {message}"):
        train(compose_config(f"model={model}", "task=copy", "trainer=cpu", "cuda_graphs=true"))
    assert not (tmp_path / "runs").exists()


def test_a_way_to_compute_that_the_device_has_not(compose_config: Compose, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="recurrence=triton: runs float32 on a CUDA GPU, not torch.float32 on cpu"):
        train(compose_config(*TINY_COPY, "recurrence=triton"))
    assert not (tmp_path / "runs").exists()


def test_a_precision_that_is_none(compose_config: Compose) -> None:
    with pytest.raises(ConfigError, match="matmul_precision=low: must be one of highest, high, medium"):
        train(compose_config(*TINY_COPY, "matmul_precision=low"))


def test_a_run_keeps_all_bits_unless_told_otherwise() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, cuts in (("highest", False), ("high", True)):
        with float32_products(precision):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, cuts)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_what_is_nearly_0_is_0_while_a_run_is_at_work_and_only_then() -> None:
    tiny, small = torch.full((100,), 1e-30), torch.tensor(1e-10)
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU keeps such numbers")
    assert (tiny * small != 0).all()
    with without_denormals():
        assert (tiny * small == 0).all()
    assert (tiny * small != 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["wrnn", "irnn"])
def test_cuda_graphs_train_the_same_numbers(compose_config: Compose, model: str, tmp_path) -> None:
    rows = []
    for graphs in ("false", "true"):
        options = [option for option in TINY_COPY if option != "trainer=cpu"]
        if model == "irnn":
            options = [option for option in options if not option.startswith("model")] + ["model=irnn"]
        run = f"{tmp_path}/{model}-{graphs}"
        train(compose_config(*options, "trainer=gpu", f"cuda_graphs={graphs}", f"paths.run_dir={run}"))
        rows.append((tmp_path / f"{model}-{graphs}/metrics.csv").read_text())
    assert rows[0] == rows[1]


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_an_optimizer_goes_on_as_this_device_has_it(compose_config: Compose, monkeypatch) -> None:
    """Whatever it was where the run began: a GPU's checkpoint on a CPU, unless the config asks for a fused one."""
    for words, expected in (((), None), (("+optimizer.fused=true",), True)):
        module = build(compose_config(*TINY_COPY, *words)).module
        module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        checkpoint = {"optimizer_states": [{"param_groups": [{"lr": 1.0, "fused": True}, {"lr": 1.0}]}]}
        module.on_load_checkpoint(checkpoint)
        assert checkpoint["optimizer_states"][0]["param_groups"] == [{"lr": 1.0, "fused": expected}, {"lr": 1.0}]
    monkeypatch.setattr(module, "_is_fused", lambda device: True)  # a CPU's checkpoint on a GPU
    module.make_optimizer = build(compose_config(*TINY_COPY)).module.make_optimizer
    checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] = None
    module.on_load_checkpoint(checkpoint)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] is True


@pytest.mark.gpu
def test_on_a_gpu_adam_is_fused(compose_config: Compose) -> None:
    module = build(compose_config(*TINY_COPY)).module.cuda()
    found = module.configure_optimizers()
    assert (found["optimizer"] if isinstance(found, dict) else found).defaults["fused"]


TINY = {
    "wrnn": ["model.core.num_channels=2", "model.core.ring_size=7"], "irnn": ["model.core.hidden_size=7"],
    "lstm": ["model.core.hidden_size=7"], "lru": ["model.core.hidden_size=6", "model.core.layer.num_units=5"],
    "indrnn": ["model.core.hidden_size=6", "model.core.num_layers=2"], "exprnn": ["model.core.hidden_size=6"],
}  # fmt: skip


def tiny(model: str, *more: str) -> list[str]:
    return [*(w for w in TINY_COPY if not w.startswith("model")), f"model={model}", *TINY[model], *more]


INPUT = {"wrnn": "input_map.", "irnn": "input_map.", "lstm": "cells.weight_ih", "lru": "input_map.", "indrnn": "maps.0"}


@pytest.mark.parametrize("frozen", ["true", "recurrence", "input", "false"])
@pytest.mark.parametrize("model", INPUT)
def test_what_is_frozen_stays_as_it_starts_and_the_rest_learns(
    compose_config: Compose, model: str, frozen: str
) -> None:
    cfg = compose_config(*tiny(model, f"model.frozen={frozen}"))
    parts = build(cfg)
    start = {name: weight.clone() for name, weight in parts.module.named_parameters()}
    train(cfg)
    after = dict(load_run(cfg.paths.run_dir).module.named_parameters())
    stays = {"true": (True, True), "recurrence": (False, True), "input": (True, False), "false": (False, False)}[frozen]
    for name, weight in after.items():
        of_input = name.startswith(f"core.{INPUT[model]}")
        expected = name.startswith("core.") and stays[0 if of_input else 1]
        assert torch.equal(weight, start[name]) == expected, name


@pytest.mark.parametrize("task", ["psmnist", "nscifar10"])
def test_a_frozen_core_runs_once_a_split_and_changes_no_bit(
    compose_config: Compose, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    images = {"psmnist": "fake_mnist", "nscifar10": "fake_cifar10"}[task]
    words = [
        "model=wrnn", f"task={task}", f"images={images}", "trainer=cpu", "images.train.size=40", "images.test.size=12",
        "task.datamodule.num_val=8", "task.datamodule.batch_size=6", "task.datamodule.eval_batch_size=5",
        "model.core.num_channels=2", "model.core.ring_size=7", "model.frozen=true", "trainer.max_epochs=3",
    ]  # fmt: skip
    seen: list[int] = []
    forward = TravelingWaveRNN.forward

    def counted(core: TravelingWaveRNN, inputs: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(len(inputs))
        return forward(core, inputs, *rest, **more)

    monkeypatch.setattr(TravelingWaveRNN, "forward", counted)
    found = []
    for largest in (2**31, 0):
        monkeypatch.setattr("wrnn.features.LARGEST", largest)
        seen.clear()
        cfg = compose_config(*words, f"run_name=at_most_{largest}", "callbacks.figures=null")
        found.append((train(cfg), load_run(cfg.paths.run_dir).module.state_dict(), sum(seen)))
    (once, weights, few), (anew, others, many) = found
    assert (few, many) == (32 + 8 + 12, 3 * (30 + 8) + 12)  # sequences; training leaves out an incomplete batch
    assert all(torch.equal(weights[key], others[key]) for key in others)
    assert {k: v for k, v in once.items() if "/" in k} == {k: v for k, v in anew.items() if "/" in k}


def test_a_word_for_frozen_that_is_none(compose_config: Compose) -> None:
    with pytest.raises(ConfigError, match="model.frozen='encoder': must be one of false, true, recurrence, input"):
        build(compose_config(*tiny("wrnn", "model.frozen=encoder")))
    with pytest.raises(ConfigError, match="model.frozen=recurrence: this core has no such weights"):
        build(compose_config("model=linear", "task=copy", "model.frozen=recurrence"))


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [("adam", "none"), ("adamw", "step"), ("rmsprop", "onecycle"), ("adagrad", "step"), ("sgd", "onecycle")],
)
def test_weights_that_want_their_own_rate_get_it_under_every_optimizer(
    compose_config: Compose, optimizer: str, scheduler: str
) -> None:
    words = [f"optimizer={optimizer}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1", f"scheduler={scheduler}"]
    module = build(compose_config(*tiny("lru", *words, "scheduler.drop_epochs=[1]"))).module
    made = module.configure_optimizers()
    found, schedule = (made["optimizer"], made["lr_scheduler"]) if isinstance(made, dict) else (made, None)
    others, *slow = found.param_groups
    assert len(slow) == 2 and others["weight_decay"] == 0.1
    for group in slow:
        assert group["lr"] == pytest.approx(0.25 * others["lr"]) and group["weight_decay"] == 0
    named = [weight for group in found.param_groups for weight in group["params"]]
    assert len(named) == len(set(named)) == len(list(module.parameters()))
    if schedule:
        found.step()
        schedule["scheduler"].step()
        assert all(group["lr"] == pytest.approx(0.25 * found.param_groups[0]["lr"]) for group in found.param_groups[1:])


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine"])
@pytest.mark.parametrize("task", ["copy", "smnist"])  # budgets in steps and in epochs
def test_a_schedule_spans_the_budget(compose_config: Compose, task: str, scheduler: str) -> None:
    words = [f"task={task}", "trainer.max_steps=100" if task == "copy" else "seed=0", "optimizer=rmsprop"]
    module = build(compose_config("model=linear", *words, f"scheduler={scheduler}", "optimizer.lr=0.5")).module
    made = module.configure_optimizers()  # without a trainer 100 steps are all steps of a budget in epochs
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    assert schedule["interval"] == "step"
    rates = []
    for _ in range(100):
        (group,) = optimizer.param_groups
        assert group["momentum"] == 0
        rates.append(group["lr"])
        optimizer.step()
        if len(rates) < 100:
            schedule["scheduler"].step()
    assert max(rates) == pytest.approx(0.5, rel=0.01) and rates[-1] < 1e-3
    apart = build(compose_config("model=lru", *words, f"scheduler={scheduler}")).module.configure_optimizers()
    assert [group["max_lr"] for group in apart["optimizer"].param_groups] == pytest.approx([1e-3, 2.5e-4, 2.5e-4])
    if scheduler == "cosine":
        assert rates == sorted(rates, reverse=True) and rates[49] == pytest.approx(0.25, rel=0.05)


def test_a_cosine_ends_with_the_shorter_of_two_budgets(compose_config: Compose, tmp_path: Path) -> None:
    words = ("scheduler=cosine", "trainer.max_steps=60000", "trainer.max_epochs=3", f"paths.run_dir={tmp_path}/run")
    train(compose_config(*TINY_COPY, *words))
    assert read_metrics(tmp_path / "run/metrics.csv")["train/learning_rate"][1][-1] < 2e-5


def test_readouts_start_as_released(compose_config: Compose) -> None:
    for model, spread, biased in (("lem", 0.125, True), ("indrnn", 0.125, False), ("flextcn", 0.01, False)):
        readout = build(compose_config(f"model={model}", "task=psmnist")).readout
        assert float(readout.weight.detach().std()) == pytest.approx(spread, rel=0.15)
        assert bool(readout.bias.detach().any()) == biased


def test_weights_that_are_bounded_are_so_after_every_step(compose_config: Compose) -> None:
    cfg = compose_config(*tiny("indrnn", "optimizer.lr=1"))
    train(cfg)
    core = load_run(cfg.paths.run_dir).core
    largest = max(float(u.detach().abs().max()) for u in core.weights)
    assert largest == pytest.approx(core.limit)  # reached, and not passed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("model", ["exprnn", "lem"])
def test_a_compiled_step_is_the_step(compose_config: Compose, model: str) -> None:
    inputs = torch.randn(3, 7, 10, dtype=torch.float64)
    found = []
    for recurrence in ("reference", "compile"):
        words = [f"model={model}", "model.core.hidden_size=6", f"recurrence={recurrence}"]
        core = build(compose_config("task=copy", *words)).core.double()
        outputs, _ = core(inputs)
        outputs.square().sum().backward()
        found.append([outputs, *(weight.grad for weight in core.parameters())])
    torch.testing.assert_close(found[0], found[1])
