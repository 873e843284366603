"""Checkpoints are whole or not there."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wrnn.callbacks.saving import StopOnNonFinite, WholeFileIO
from wrnn.errors import DivergedError


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new/last.ckpt"
    writer = WholeFileIO()
    writer.save_checkpoint({"step": 1}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("scale", "diverged"), [(None, True), (65536.0, False), (0.5, True)])
def test_a_gradient_that_a_scaler_will_skip_ends_no_run(scale: float | None, diverged: bool) -> None:
    """Until the scaler has given up on finding a scale that is small enough."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), global_step=4, log_every_n_steps=10, max_steps=100
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    callback = StopOnNonFinite()
    callback.on_before_backward(trainer, module, torch.tensor(3.0 * (scale or 1)))
    with pytest.raises(DivergedError, match="diverged at step 5: loss 3,") if diverged else nullcontext():
        callback.on_before_optimizer_step(trainer, module, torch.optim.SGD([weight], lr=0.1))
