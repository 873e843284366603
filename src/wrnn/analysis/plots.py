"""Pictures of a run: its learning curve, and the state of a ring over time."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from wrnn.cores.base import Core


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
def ring_states(core: Core, inputs: Tensor) -> Tensor:
    """States of a ring core over one sequence: inputs (T, I) -> (C, N, T).

    Raises: ValueError for a core without rings.
    """
    if core.ring_shape is None:
        raise ValueError(f"{type(core).__name__} has no rings")
    outputs, _ = core(inputs[None])
    return outputs[0].unflatten(-1, core.ring_shape).permute(1, 2, 0)


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


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
