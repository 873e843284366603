"""What a user reads while a run goes."""

import re

import pytest

from conftest import TINY_COPY, Compose
from wrnn.callbacks.progress import Bar, ProgressLines, progress
from wrnn.training import train


def test_lines_say_step_loss_speed_and_time_left(
    compose_config: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(compose_config(*TINY_COPY, "callbacks.progress.every_seconds=0"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) >= 15
    assert re.fullmatch(r"step 1/15  train/loss 2\.\d+  [\d.e+]+ steps/s  left \d+:\d\d:\d\d", lines[0])


def test_a_terminal_gets_a_bar(
    compose_config: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(progress(), ProgressLines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(progress(), Bar)
    train(compose_config(*TINY_COPY))
    assert "epoch 1, from step 0 of 15" in capsys.readouterr().out
