"""Pictures: that they show what they say."""

from pathlib import Path

import pytest
import torch

from wrnn.analysis import plots
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN


def test_states_come_as_channel_neuron_time() -> None:
    core = TravelingWaveRNN(1, num_channels=2, ring_size=6)
    impulse = torch.zeros(4, 1)
    impulse[0] = 1
    states = plots.ring_states(core, impulse)
    assert states.shape == (2, 6, 4)
    assert [int(states[1, :, step].argmax()) for step in range(4)] == [0, 5, 4, 3]
    with pytest.raises(ValueError, match="IdentityRNN has no rings"):
        plots.ring_states(IdentityRNN(1, 6), impulse)


def test_the_most_active_channels_are_drawn(tmp_path: Path) -> None:
    states = torch.zeros(6, 5, 7)
    states[[1, 4]] = torch.rand(2, 5, 7)
    figure = plots.state_over_time(states, "title", max_channels=2)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["channel 1\nneuron", "channel 4\nneuron"]
    plots.save(figure, tmp_path / "new/state.png")
    assert (tmp_path / "new/state.png").stat().st_size > 5000


def test_a_learning_curve_has_both_splits() -> None:
    curves = {key: ([1, 2, 3], [0.1, 0.2, 0.3]) for key in ("train/loss", "val/loss", "train/accuracy", "val/accuracy")}
    losses, accuracy = plots.learning_curve(curves, "val/accuracy").axes
    assert losses.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert len(losses.lines) == len(accuracy.lines) == 2
    assert [len(axes.lines) for axes in plots.learning_curve({}, "val/accuracy").axes] == [0, 0]
