"""Figures of states: of models whose weights the ledger keeps, over the first test sequence of their task.

The state before training is made anew from the run's settings and seed, so it needs no weights.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from wrnn.analysis import plots
from wrnn.analysis.dimension import participation_ratio
from wrnn.analysis.memory import memory_span
from wrnn.analysis.onsets import decode_onsets
from wrnn.analysis.spectrum import spectrum
from wrnn.analysis.velocity import Waves, channel_velocities, velocities
from wrnn.config import first_line
from wrnn.cores.base import Core
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.inits import Initializer, identity_, shift_, source_identity_
from wrnn.paper.ledger import Record, weights_path
from wrnn.paper.report import Paper, headline
from wrnn.training import build


@dataclass(frozen=True)
class Trained:
    """A model of the ledger with the weights that its run tested, and the sequence that pictures show.

    Attributes:
        run: its record.
        core, readout: with those weights.
        start: the core before training.
        inputs: (T, I), the first test sequence.
        target: of the sequence.
    """

    run: Record
    core: Core
    readout: nn.Module
    start: Core
    inputs: Tensor
    target: Tensor

    @cached_property
    def states(self) -> Tensor:
        """(C, N, T) after training."""
        return plots.states_of(self.core, self.inputs)

    @cached_property
    def waves(self) -> tuple[list[Waves], Waves]:
        """Of each channel after training, and of all together."""
        return channel_velocities(self.states)


def load(paper: Paper, experiment: str) -> Trained | None:
    """The best model of an experiment whose weights were kept, the largest budget first; None where there is none."""
    if experiment not in paper.models:
        paper.models[experiment] = _load(paper, experiment)
    found = paper.models[experiment]
    assert found is None or isinstance(found, Trained)
    return found


def _load(paper: Paper, experiment: str) -> Trained | None:
    runs = [run for run in paper.placed.runs.get(experiment, []) if weights_path(paper.ledger.folder, run).exists()]
    runs = [run for run in runs if run.preset == "corrected"]
    if not runs:
        return None
    metric, mode = headline(runs[0]), runs[0].settings["task"]["monitor"]["mode"]
    sign = 1 if mode == "max" else -1
    runs.sort(key=lambda run: (paper.experiments.share(experiment, run), sign * run.results[metric]), reverse=True)
    for run in runs:
        path = weights_path(paper.ledger.folder, run)
        core, readout = _parts(paper, experiment, run.seed)
        start, _ = _parts(paper, experiment, run.seed)
        try:
            kept = torch.load(path, weights_only=True)
            core.load_state_dict(kept["core"])
            readout.load_state_dict(kept["readout"])
            return Trained(run, core, readout, start, kept["inputs"], kept["target"])
        except Exception as error:  # a file can be damaged in many ways
            problem = f"weights/{path.name}: skipped, not the weights of {experiment} ({first_line(error)})"
            paper.ledger.problems.append(problem)
            print(f"warning: {paper.ledger.folder}/{problem}", file=sys.stderr)
    return None


def _parts(paper: Paper, experiment: str, seed: int) -> tuple[Core, nn.Module]:
    cfg = paper.experiments.config(experiment, "corrected").copy()
    cfg.seed = seed
    with torch.random.fork_rng(devices=[]):
        parts = build(cfg)
    parts.module.eval()
    return parts.core, parts.readout


def figure_1(paper: Paper) -> tuple[Figure, str]:
    """A field of waves tells when and where inputs came; a static bump does not."""
    steps, units = 60, 60
    generator = torch.Generator().manual_seed(3)
    trains = (torch.rand(3, steps, generator=generator) < 0.06).float()
    trains[:, 40:] = 0
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(3, 2, sharex="col")
    states = {}
    for name in ("shift", "identity"):
        start = Initializer(shift_ if name == "shift" else identity_)
        core = TravelingWaveRNN(3, 3, units, init=start, input_init=Initializer(source_identity_))
        states[name] = plots.states_of(core, trains.T)
    _trains(grid[0, 0], trains)
    grid[0, 0].set_title("by construction: three channels, binary inputs")
    for row, (name, label) in enumerate((("shift", "waves (shift)"), ("identity", "static bump (identity)")), start=1):
        plots.draw_state(grid[row, 0], states[name].flatten(0, 1), f"{label}\n3 channels x {units} neurons")
    found = decode_onsets(states["shift"][:, :, -1])
    read = torch.zeros_like(trains)
    for onset in found:
        read[onset.channel, steps - 1 - round(onset.steps_ago)] = 1
    right = bool((read == trains).all())
    grid[1, 0].set_title(
        f"{int(trains.sum())} onsets read from the last state: {'all right' if right else 'not all right'}"
    )
    bump = states["identity"][:, 0, -1]
    grid[2, 0].set_title(f"the last state knows how many came: {', '.join(f'{value:.0f}' for value in bump.tolist())}")
    wave, dense = load(paper, "wrnn_copy_t30"), load(paper, "irnn_copy_t30")
    grid[0, 1].set_title("trained: copy task, T = 30")
    if wave:
        _image(grid[0, 1], wave.inputs.T, "input symbol")
        plots.draw_state(grid[1, 1], _scaled(wave.states).flatten(0, 1), "wRNN\n6 channels x 100 neurons")
    else:
        _missing(grid[0, 1])
        _missing(grid[1, 1])
    if dense:
        plots.draw_state(
            grid[2, 1],
            plots.sort_by_peak(dense.states[0]),
            "iRNN, 100 neurons\nby time of peak",
        )
    else:
        _missing(grid[2, 1])
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    return figure, (
        "Waves keep when and on which channel an input came (left, exact by construction: the onsets are decoded from"
        " the last state alone); a static bump keeps how many. Right: the same of models trained on the copy task."
    )


def figure_2(paper: Paper) -> tuple[Figure, str]:
    """State and spectrum of both models on one test digit."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    grid = figure.subplots(2, 2)
    said = []
    for row, (experiment, label) in zip(grid, (("wrnn_smnist", "wRNN"), ("irnn_smnist", "iRNN")), strict=True):
        model = load(paper, experiment)
        if model is None:
            for axes in row:
                _missing(axes)
            continue
        states, channel = model.states, plots.most_active(model.states)
        if model.core.ring_shape is None:
            shown, where, words, lines = plots.sort_by_peak(states[0]), "by time of peak", "no ring, no velocity", []
        else:
            found = model.waves[0][channel]
            shown, where = states[channel], f"channel {channel}"
            words, lines = found.describe(), found.lines
        plots.draw_state(row[0], shown, f"{label}\nneuron")
        row[0].set_title(where)
        _spectrum(row[1], shown, lines)
        row[1].set_title(words, fontsize=7)
        said.append(f"{label} after {_epochs(model)}")
    for axes in grid[1]:
        axes.set_xlabel(axes.get_xlabel() or "time step")
    return figure, (
        f"State (left) and space-time spectrum (right) on one test digit of sMNIST; {', '.join(said) or 'not run'}. The"
        " spectrum is divided by that of states shuffled in space and time; dashed: the fitted velocity. Activity that"
        " moves towards lower neuron indices at 1 neuron a step is the line from lower left to upper right."
    )


def figure_4(paper: Paper) -> tuple[Figure, str]:
    """Copy examples of the wRNN and the large iRNN."""
    models = (("wRNN\nn=100, c=6", "wrnn_copy_t{}"), ("iRNN\nn=625", "irnn_copy_t{}_n625"))
    return _copies(
        paper, models
    ), "Copy task, one test sequence a column, the first and the last steps of long ones. " + _COPY


def figure_16(paper: Paper) -> tuple[Figure, str]:
    """Copy examples of the small iRNN."""
    return _copies(paper, (("iRNN\nn=100", "irnn_copy_t{}"),)), "The same for the iRNN with n = 100. " + _COPY


_COPY = "Rows: what should come out, and the probability that a model gives to each class. Black is 1."


def figure_9(paper: Paper) -> tuple[Figure, str]:
    """States of fifteen channels."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    grid = figure.subplots(5, 3, sharex=True, sharey=True)
    model = load(paper, "wrnn_smnist")
    if model is None:
        _missing(grid[2, 1])
        return figure, "States of 15 channels of a wRNN on sMNIST: not run."
    for channel, axes in zip(range(len(model.states)), grid.flat, strict=False):
        plots.draw_state(axes, model.states[channel], "neuron" if channel % 3 == 0 else "")
        axes.set_title(f"channel {channel}")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    return figure, (
        "States of 15 of the 16 channels of a wRNN on one test digit of sMNIST, after"
        f" {_epochs(model)}. Each is scaled to its own largest activity."
    )


def figure_10(paper: Paper) -> tuple[Figure, str]:
    """Channels with their spectra and velocities."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    grid = figure.subplots(4, 2)
    model = load(paper, "wrnn_smnist")
    if model is None:
        _missing(grid[0, 0])
        return figure, "Velocities of the channels of a wRNN: not run."
    each, _ = model.waves
    speed = [waves.waves[0].velocity if waves.waves else 0.0 for waves in each]
    by_speed = sorted(range(len(speed)), key=speed.__getitem__)
    by_number = sorted(range(len(speed)), key=lambda channel: -len(each[channel].waves))
    chosen = list(dict.fromkeys([by_speed[0], by_speed[-1], *by_number]))[: len(grid)]
    for row, channel in zip(grid, sorted(chosen, key=speed.__getitem__), strict=False):
        plots.draw_state(row[0], model.states[channel], f"channel {channel}\nneuron")
        _spectrum(row[1], model.states[channel], each[channel].lines)
        row[1].set_title(each[channel].describe(), fontsize=7)
    grid[-1, 0].set_xlabel("time step")
    return figure, (
        f"Channels of a wRNN on one test digit of sMNIST, after {_epochs(model)}: those with the"
        " most waves, the slowest and the fastest. Dashed: fitted velocities; those of waves with a few percent of the"
        " power, which die out near their source, are less certain than they say."
    )


_SIX = (
    ("wRNN, shift", "wrnn_smnist"), ("wRNN, random", "wrnn_smnist_random_u"), ("wRNN, identity", "wrnn_smnist_dirac_u"),
    ("iRNN, identity", "irnn_smnist"), ("iRNN, random", "irnn_smnist_random_u"), ("iRNN, shift", "irnn_smnist_shift_u"),
)  # fmt: skip


def figure_15(paper: Paper) -> tuple[Figure, str]:
    """States of a network with a kernel for each position, before and after training."""
    figure, said = _before_and_after(paper, (("a kernel for\neach position", "locally_connected_smnist"),), height=2.2)
    return figure, (
        "States of a locally connected network on one test digit of sMNIST before and after training, the most active"
        f" channel; {said}."
    )


def figure_18(paper: Paper) -> tuple[Figure, str]:
    """States before and after training, six starts."""
    figure, said = _before_and_after(paper, _SIX, height=9)
    return figure, (
        f"States on one test digit of sMNIST before and after training, the most active channel; {said}. The paper"
        " trains 120."
    )


def _before_and_after(paper: Paper, lines: Sequence[tuple[str, str]], height: float) -> tuple[Figure, str]:
    """A row for each experiment, and how many epochs each was trained."""
    figure = Figure(figsize=(9, height), layout="constrained")
    grid = figure.subplots(len(lines), 2, sharex=True, squeeze=False)
    probe = next((model.inputs for _, name in _SIX if (model := load(paper, name))), None)
    said = []
    for row, (label, name) in zip(grid, lines, strict=True):
        model = load(paper, name)
        inputs = model.inputs if model else probe
        start = model.start if model else _parts(paper, name, 0)[0]
        for axes, core in ((row[0], start), (row[1], model.core if model else None)):
            if core is None or inputs is None:
                _missing(axes)
                continue
            states = plots.states_of(core, inputs)
            channel = plots.most_active(states)
            plots.draw_state(axes, states[channel], f"{label}\nneuron" if axes is row[0] else "")
        if model:
            said.append(f"{label}: {_epochs(model)}".replace("\n", " "))
    grid[0, 0].set_title("before training")
    grid[0, 1].set_title("after training")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    return figure, "; ".join(said) or "none run"


def _epochs(model: Trained) -> str:
    count = model.run.budget["epochs"]
    return f"{count:g} epoch{'s' * (count != 1)}"


STATES: dict[str, Callable[[Paper], tuple[Figure, str]]] = {
    "Figure 1": figure_1, "Figure 2": figure_2, "Figure 4": figure_4, "Figure 9": figure_9, "Figure 10": figure_10,
    "Figure 15": figure_15, "Figure 16": figure_16, "Figure 18": figure_18,
}  # fmt: skip


def wave_rows(paper: Paper) -> list[dict[str, str]]:
    """Velocity, dimensionality and memory of every experiment with kept weights, before and after training."""
    rows = []
    for experiment in sorted(paper.placed.runs):
        model = load(paper, experiment)
        if model is None or not list(model.core.parameters()):
            continue
        for when, core in (("before", model.start), ("after", model.core)):
            states = model.states if core is model.core else plots.states_of(core, model.inputs)
            main, pooled = "no ring", ""
            if core.ring_shape is not None:
                channel = plots.most_active(states)
                found = model.waves[0][channel] if core is model.core else velocities(states[channel])
                main = f"{channel}: {found.describe()}"
                pooled = model.waves[1].describe() if core is model.core else velocities(states).describe()
            memory = ""
            if model.inputs.shape[-1] == 1:
                memory = f"{memory_span(core, 1, num_steps=256).capacity:.0f} of 256"
            rows.append({
                "experiment": experiment, "training": when, "run": model.run.id[:6], "main channel": main,
                "all channels": pooled, "dimensions": f"{participation_ratio(states.flatten(0, 1)):.3g}",
                "inputs remembered": memory,
            })  # fmt: skip
    return rows


def _copies(paper: Paper, models: Sequence[tuple[str, str]]) -> Figure:
    delays = (0, 10, 30, 80, 480)
    figure = Figure(figsize=(10, 1.3 + 1.3 * len(models)), layout="constrained")
    grid = figure.subplots(1 + len(models), len(delays), squeeze=False)
    for column, delay in enumerate(delays):
        found = [load(paper, name.format(delay)) for _, name in models]
        first = next((model for model in found if model), None)
        wanted = None if first is None else nn.functional.one_hot(first.target, 10).float()
        pictures = [wanted, *(None if model is None else _answer(model) for model in found)]
        grid[0, column].set_title(f"T = {delay}")
        for axes, picture, label in zip(
            grid[:, column], pictures, ["target", *(name for name, _ in models)], strict=True
        ):
            if picture is None:
                _missing(axes)
            else:
                _image(axes, _ends(picture).T, "")
                axes.set_yticks([0, 3, 6, 9])
                if len(picture) > SHOWN:
                    ends = [0, 20, len(picture) - 20, len(picture) - 2]
                    axes.set_xticks([0, 20, SHOWN - 18, SHOWN], labels=[str(step) for step in ends])
            axes.set_ylabel(f"{label}\nclass" if column == 0 else "")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    return figure


@torch.no_grad()
def _answer(model: Trained) -> Tensor:
    """(T, classes): the probability of each class after every step."""
    return model.core.read_every_step(model.inputs[None], model.readout)[0].softmax(-1)


SHOWN = 60  # steps of a long sequence: half of them from its start, half from its end


def _ends(sequence: Tensor) -> Tensor:
    """The first and the last steps of a long sequence, with a gap of two between."""
    if len(sequence) <= SHOWN:
        return sequence
    gap = torch.full((2, sequence.shape[1]), 0.5)
    return torch.cat([sequence[: SHOWN // 2], gap, sequence[-SHOWN // 2 :]])


def _scaled(states: Tensor) -> Tensor:
    """Each channel of (C, N, T) divided by its own largest activity."""
    return states / states.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _trains(axes: Axes, trains: Tensor) -> None:
    channels, steps = trains.nonzero(as_tuple=True)
    axes.vlines(steps.numpy(), channels.numpy() - 0.35, channels.numpy() + 0.35, color="black", lw=1)
    axes.set(yticks=range(len(trains)), ylim=(-0.6, len(trains) - 0.4), ylabel="input channel")


def _image(axes: Axes, picture: Tensor, label: str) -> None:
    axes.imshow(picture.numpy(), aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest", vmin=0, vmax=1)
    axes.set_ylabel(label)


def _spectrum(axes: Axes, states: Tensor, velocities: Sequence[float]) -> None:
    plots.draw_spectrum(axes, spectrum(states, normalize="shuffled"), velocities)


def _missing(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no weights kept", transform=axes.transAxes, ha="center", va="center", color="0.4")
