"""Pictures of a run: its learning curve, and the states of its core over time, in space and frequency, in training.

B batch, C channels, N neurons, T time steps. A core without rings has one channel of all its units.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import torch
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from wrnn.analysis.spectrum import Spectrum
from wrnn.cores.base import Core, evaluated


def learning_curve(curves: dict[str, tuple[list[int], list[float]]], metric: str) -> Figure:
    """Training loss and the monitored validation metric against optimizer steps.

    Args:
        curves: (steps, values) by metric name, as `wrnn.loggers.read_metrics` gives them.
        metric: the monitored one, such as `val/accuracy`.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, monitored = figure.subplots(1, 2)
    for key, style in (("train/loss", {"lw": 0.8, "alpha": 0.7}), ("val/loss", {"marker": ".", "lw": 1.5})):
        if key in curves:
            losses.plot(*curves[key], label=key, **style)
    losses.set(xlabel="optimizer steps", ylabel="loss")
    name = metric.split("/")[-1]
    for key, style in ((f"train/{name}", {"lw": 0.8, "alpha": 0.7}), (metric, {"marker": ".", "lw": 1.5})):
        if key in curves:
            monitored.plot(*curves[key], label=key, **style)
    monitored.set(xlabel="optimizer steps", ylabel=name.replace("_", " "))
    for axes in (losses, monitored):
        positive = [value for line in axes.lines for value in line.get_ydata()]
        if positive and min(positive) > 0 and (axes is losses or name != "accuracy"):
            axes.set_yscale("log")
        if axes.lines:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@torch.no_grad()
def states_of(core: Core, inputs: Tensor) -> Tensor:
    """States of a core over one sequence: inputs (T, I) -> (C, N, T), one channel for a core without rings.

    In evaluation mode, whichever the core is in.
    """
    with evaluated(core) as like:
        outputs, _ = core(inputs[None].to(like))
    return outputs[0].unflatten(-1, core.ring_shape or (1, core.output_size)).permute(1, 2, 0)


def most_active(states: Tensor) -> int:
    """The channel of (C, N, T) with the largest sum of squares."""
    return int(states.double().square().sum((1, 2)).argmax())


def sort_by_peak(states: Tensor) -> Tensor:
    """Units of (N, T) in the order of their time of largest activity, so that any sequence of activity would show."""
    return states[states.argmax(1).argsort(stable=True)]


def state_over_time(states: Tensor, title: str, max_channels: int = 4) -> Figure:
    """The activity of the most active channels, neuron against time step, each scaled to its own largest value.

    Args:
        states: (C, N, T).
        title: heading of the picture.
        max_channels: how many channels to show.
    """
    energy = states.double().square().sum((1, 2))
    chosen = energy.argsort(descending=True)[:max_channels].sort().values
    figure = Figure(figsize=(9, 1.1 + 1.5 * len(chosen)), layout="constrained")
    panels = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axes, channel in zip(panels, chosen.tolist(), strict=True):
        largest = float(states[channel].abs().max())
        image = axes.imshow(
            states[channel].cpu().float().numpy(), aspect="auto", origin="lower", cmap="magma", interpolation="nearest",
            vmin=min(0.0, float(states[channel].min())), vmax=largest or 1.0,
        )  # fmt: skip
        axes.set_ylabel(f"channel {channel}\nneuron")
        figure.colorbar(image, ax=axes, pad=0.01)
    panels[-1].set_xlabel("time step")
    figure.suptitle(title)
    return figure


def draw_state(axes: Axes, states: Tensor, label: str) -> None:
    """Neuron against time step of (N, T): white is the least activity or 0, black the largest, so that it prints."""
    largest = float(states.max())
    axes.imshow(
        states.cpu().float().numpy(), aspect="auto", origin="lower", cmap="gray_r",
        vmin=min(0.0, float(states.min())), vmax=largest or 1.0,
    )  # fmt: skip
    axes.set_ylim(-0.5 - 0.02 * len(states), len(states) - 0.5)  # neuron 0, where inputs enter, is not on the frame
    axes.set_ylabel(label)


def draw_spectrum(axes: Axes, found: Spectrum, velocities: Sequence[float] = ()) -> None:
    """Logarithm of a spectrum (N, T), with the lines of the velocities dashed where they do not wrap around.

    A raw spectrum's is of magnitudes, a normalised one's of their ratios to those of shuffled states.
    """
    magnitude = found.magnitude.clamp(min=1e-12).log10()
    low, high = (float(magnitude.quantile(q)) for q in (0.5, 0.9995))
    times, places = found.time_frequency, found.space_frequency
    half, up = float(times[1] - times[0]) / 2, float(places[1] - places[0]) / 2  # bins lie around their frequency
    extent = (float(times[0]) - half, float(times[-1]) + half, float(places[0]) - up, float(places[-1]) + up)
    image = axes.imshow(
        magnitude.numpy(), aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest",
        extent=extent, vmin=low, vmax=max(high, low + 1e-9),
    )  # fmt: skip
    for velocity, colour in zip(velocities, cycle(("#D55E00", "#0072B2", "#009E73")), strict=False):
        reach = min(0.5, 0.5 / max(abs(velocity), 1e-9))
        line = [-reach * velocity, reach * velocity], [-reach, reach]
        axes.plot(*line, "--", color=colour, lw=1.2, dashes=(4, 6))
    axes.set(xlabel="time frequency (cycles/step)", ylabel="space frequency\n(cycles/neuron)")
    axes.set(xlim=extent[:2], ylim=extent[2:])
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes, pad=0.01, label=f"log10 {found.unit}")


def space_time_spectrum(found: Spectrum, title: str, velocities: Sequence[float] = ()) -> Figure:
    """A spectrum as a figure, see `draw_spectrum`."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    draw_spectrum(axes, found, velocities)
    axes.set_title(title)
    return figure


def all_channels(states: Tensor, title: str, columns: int = 4) -> Figure:
    """A panel for each channel of (C, N, T), each scaled to its own largest activity."""
    rows = -(-len(states) // columns)
    figure = Figure(figsize=(2.6 * columns, 0.8 + 1.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for channel, axes in enumerate(grid.flat):
        if channel >= len(states):
            axes.set_visible(False)
            continue
        draw_state(axes, states[channel], "neuron" if channel % columns == 0 else "")
        axes.set_title(f"channel {channel}", fontsize=8)
        if channel + columns >= len(states):
            axes.set_xlabel("time step")
            axes.tick_params(labelbottom=True)
    figure.suptitle(title)
    return figure


def early_and_late(early: Tensor, late: Tensor, title: str, max_channels: int = 4) -> Figure:
    """The channels (C, N, T) that are most active late, as they were early and are late in training.

    Each panel is scaled to its own largest activity.
    """
    chosen = late.double().square().sum((1, 2)).argsort(descending=True)[:max_channels].sort().values.tolist()
    figure = Figure(figsize=(9, 1.1 + 1.4 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), 2, sharex=True, squeeze=False)
    for row, channel in zip(grid, chosen, strict=True):
        draw_state(row[0], early[channel], f"channel {channel}\nneuron")
        draw_state(row[1], late[channel], "")
    for axes, name in zip(grid[0], ("early", "late"), strict=True):
        axes.set_title(name)
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    figure.suptitle(title)
    return figure


def animate(states: Tensor, path: Path, max_frames: int = 100, frames_per_second: int = 20) -> None:
    """The field, channel against neuron of (C, N, T), as a moving picture over time, a `.gif` or `.mp4`.

    Raises: ValueError for another ending, or `.mp4` where there is no ffmpeg.
    """
    writers = {".gif": "pillow", ".mp4": "ffmpeg"}
    if path.suffix not in writers or not animation.writers.is_available(writers[path.suffix]):
        raise ValueError(f"path={path}: must end in .gif, or in .mp4 where ffmpeg is installed")
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes = figure.subplots()
    draw_state(axes, states[:, :, 0], "channel")
    picture = axes.images[0]
    picture.set_clim(min(0.0, float(states.min())), float(states.max()) or 1.0)
    axes.set_xlabel("neuron")
    every = -(-states.shape[-1] // max_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = animation.writers[writers[path.suffix]](fps=frames_per_second)
    with writer.saving(figure, str(path), dpi=80):
        for step in range(0, states.shape[-1], every):
            picture.set_data(states[:, :, step].cpu().float().numpy())
            axes.set_title(f"time step {step}")
            writer.grab_frame()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making the folder. Raises: MemoryError where the encoder lacks memory; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except SystemError as error:  # compiled code that failed without a word, as where it gets no memory
        raise MemoryError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno is None:  # the encoder's own, whose one reason is the same
            raise MemoryError(f"{path}: {error}") from error
        raise
