"""Checkpoints are whole or not there."""

from pathlib import Path

import pytest
import torch

from wrnn.callbacks.saving import WholeFileIO


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
