"""Pictures: that they show what they say."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from wrnn.analysis import plots
from wrnn.analysis.spectrum import spectrum
from wrnn.cores.indrnn import IndependentRNN
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN


def shown(axes: Axes) -> npt.NDArray[np.float32]:
    return np.asarray(axes.images[0].get_array())


def test_states_come_as_channel_neuron_time() -> None:
    core = TravelingWaveRNN(1, num_channels=2, ring_size=6)
    impulse = torch.zeros(4, 1)
    impulse[0] = 1
    states = plots.states_of(core, impulse)
    assert states.shape == (2, 6, 4)
    assert [int(states[1, :, step].argmax()) for step in range(4)] == [0, 5, 4, 3]
    assert plots.states_of(IdentityRNN(1, 6), impulse).shape == (1, 6, 4)
    assert plots.states_of(core.double(), impulse).dtype == torch.float64
    core = IndependentRNN(1, 9, hidden_size=6, num_layers=2, dropout=0.5)
    assert torch.equal(plots.states_of(core, impulse), plots.states_of(core, impulse))
    assert all(part.training for part in core.modules()) and core.norms[0].num_batches_tracked == 0


def test_units_in_the_order_of_their_peaks() -> None:
    states = torch.eye(6)[torch.randperm(6)]
    assert torch.equal(plots.sort_by_peak(states), torch.eye(6))


def test_a_spectrum_has_units_and_the_line_of_its_wave() -> None:
    place, step = torch.arange(32.0)[:, None], torch.arange(64.0)
    found = spectrum(torch.sin(2 * torch.pi * (4 / 32 * place + 8 / 64 * step)))
    axes = plots.space_time_spectrum(found, "title", [1.0]).axes[0]
    assert axes.get_xlabel() == "time frequency (cycles/step)" and "cycles/neuron" in axes.get_ylabel()
    ends = axes.lines[0].get_xydata()
    assert ends.tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    extent = axes.images[0].get_extent()
    assert extent == [
        -0.5 - 0.5 / 64,
        0.5 - 0.5 / 64,
        -0.5 - 0.5 / 32,
        0.5 - 0.5 / 32,
    ]  # bins lie around their frequency
    shown = axes.images[0].get_array()
    row, column = divmod(int(shown.argmax()), 64)
    place_of = (extent[0] + (column + 0.5) / 64, extent[2] + (row + 0.5) / 32)
    assert tuple(map(abs, place_of)) == pytest.approx((8 / 64, 4 / 32))


def test_every_channel_is_drawn() -> None:
    states = torch.rand(5, 6, 7)
    drawn = [axes for axes in plots.all_channels(states, "title", columns=2).axes if axes.get_visible()]
    assert [axes.get_title() for axes in drawn] == [f"channel {channel}" for channel in range(5)]
    assert all(np.array_equal(shown(axes), states[channel]) for channel, axes in enumerate(drawn))
    assert {axes.images[0].get_cmap().name for axes in drawn} == {"gray_r"}
    strongest = 2 * states
    strongest[3] *= 9
    early, late = plots.early_and_late(states, strongest, "title", max_channels=1).axes
    assert (early.get_title(), late.get_title()) == ("early", "late")
    assert np.array_equal(shown(early), states[3]) and np.array_equal(shown(late), strongest[3])


def test_an_animation_has_a_frame_for_each_step_up_to_a_limit(tmp_path: Path) -> None:
    for steps, frames in ((7, 7), (25, 9)):
        plots.animate(torch.rand(2, 9, steps), tmp_path / "waves.gif", max_frames=10)
        with Image.open(tmp_path / "waves.gif") as picture:
            assert picture.n_frames == frames
            first = np.asarray(picture.convert("RGB"))
            picture.seek(frames - 1)
            field = slice(60, None)  # below the title, which counts steps
            assert (first[field] != np.asarray(picture.convert("RGB"))[field]).mean() > 0.1
    with pytest.raises(ValueError, match="must end in .gif"):
        plots.animate(torch.rand(2, 9, 4), tmp_path / "waves.avi")


def test_the_most_active_channels_are_drawn(tmp_path: Path) -> None:
    states = torch.zeros(6, 5, 7)
    states[[1, 4]] = torch.rand(2, 5, 7)
    figure = plots.state_over_time(states, "title", max_channels=2)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["channel 1\nneuron", "channel 4\nneuron"]
    assert np.array_equal(shown(figure.axes[0]), states[1]) and figure.axes[0].images[0].origin == "lower"
    plots.save(figure, tmp_path / "new/state.png")
    assert (tmp_path / "new/state.png").stat().st_size > 5000


def test_a_learning_curve_has_both_splits() -> None:
    curves = {key: ([1, 2, 3], [0.1, 0.2, 0.3]) for key in ("train/loss", "val/loss", "train/accuracy", "val/accuracy")}
    losses, accuracy = plots.learning_curve(curves, "val/accuracy").axes
    assert losses.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert len(losses.lines) == len(accuracy.lines) == 2
    assert [len(axes.lines) for axes in plots.learning_curve({}, "val/accuracy").axes] == [0, 0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("codec configuration error"), MemoryError),
        (SystemError("error return without exception set"), MemoryError),
        (OSError(28, "No space left on device"), OSError),
    ],
)
def test_an_encoder_without_memory_is_told_from_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    figure = plots.learning_curve({}, "val/mse")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(expected) as caught:
        plots.save(figure, tmp_path / "curve.png")
    assert caught.type is expected
