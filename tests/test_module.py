"""The module's recorded training step, without a GPU to record it on."""

import pytest
import torch
from torch import nn

from conftest import TINY_COPY, Compose
from wrnn.errors import ConfigError
from wrnn.precision import float32_products
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


def test_cuda_graphs_need_a_gpu(compose_config: Compose, tmp_path) -> None:
    with pytest.raises(ConfigError, match="cuda_graphs=true: needs one CUDA GPU, not cpu"):
        train(compose_config(*TINY_COPY, "cuda_graphs=true"))
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


@pytest.mark.gpu
def test_on_a_gpu_adam_is_fused(compose_config: Compose) -> None:
    module = build(compose_config(*TINY_COPY)).module.cuda()
    found = module.configure_optimizers()
    assert (found["optimizer"] if isinstance(found, dict) else found).defaults["fused"]


@pytest.mark.parametrize("model", ["wrnn", "irnn"])
def test_a_frozen_core_stays_as_it_starts_and_the_readout_learns(compose_config: Compose, model: str) -> None:
    size = "model.core.hidden_size=7" if model == "irnn" else "model.core.ring_size=7"
    tiny = [word for word in TINY_COPY if not word.startswith("model")]
    cfg = compose_config(*tiny, f"model={model}", size, "model.frozen=true")
    start = build(cfg).module.state_dict()
    train(cfg)
    run = load_run(cfg.paths.run_dir)
    for name, weight in run.module.state_dict().items():
        assert torch.equal(weight, start[name]) == name.startswith("core."), name
