"""The paper's figures 1 to 10 and 13 to 18 from the ledger: our runs as lines and bars, quoted points as open circles.

Where nothing was run, a panel says so. Colours are Okabe and Ito's; line styles and markers tell models apart without
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wrnn.paper.cells import measured, read_cells
from wrnn.paper.curves import axis_of, course, longest
from wrnn.paper.report import Paper, file_name
from wrnn.training import build, parameter_counts


@dataclass(frozen=True)
class Look:
    """How a model is drawn, in colour and without."""

    colour: str
    line: str
    marker: str


WAVE = Look("#0072B2", "-", "o")
DENSE = Look("#D55E00", "--", "s")
LARGE = Look("#009E73", ":", "^")
OTHER = Look("#CC79A7", "-.", "D")


@dataclass(frozen=True)
class Series:
    """A line of a panel."""

    label: str
    experiment: str
    look: Look


def draw_all(paper: Paper, folder: Path) -> None:
    """Draw every figure as PNG and PDF, and note its caption in the paper."""
    from wrnn.paper import state_figures

    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Callable[[Paper], tuple[Figure, str]]] = {**CURVES, **state_figures.STATES}
    with matplotlib.rc_context(
        {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
    ):
        for name in sorted(drawn, key=lambda name: int(name.split()[-1])):
            figure, caption = drawn[name](paper)
            paper.pictures[name] = caption
            for ending in ("png", "pdf"):
                metadata = {"CreationDate": None} if ending == "pdf" else {"Software": None}
                figure.savefig(folder / f"{file_name(name)}.{ending}", dpi=150, metadata=metadata)
    paper.waves = state_figures.wave_rows(paper)


def figure_3(paper: Paper) -> tuple[Figure, str]:
    """Copy task: loss against steps for three delays."""
    figure, panels = _panels(3)
    for axes, delay in zip(panels, (0, 30, 80), strict=True):
        lines = [
            Series("wRNN n=100, c=6", f"wrnn_copy_t{delay}", WAVE),
            Series("iRNN n=625", f"irnn_copy_t{delay}_n625", LARGE),
            Series("iRNN n=100", f"irnn_copy_t{delay}", DENSE),
        ]
        _curves(axes, paper, lines)
        axes.set(title=f"T = {delay}", yscale="log")
    panels[0].set_ylabel('cross-entropy / 50 (nats), the paper\'s "MSE"')
    return _finish(
        figure, panels
    ), "Copy task with T = 0, 30, 80. Lines: validation loss of our runs, one a seed. " + OPEN


def figure_5(paper: Paper) -> tuple[Figure, str]:
    """Adding task: error against steps for three lengths."""
    figure, panels = _panels(3)
    for axes, length in zip(panels, (100, 400, 1000), strict=True):
        lines = [
            Series("wRNN n=100, c=27", f"wrnn_adding_t{length}", WAVE),
            Series("iRNN n=100", f"irnn_adding_t{length}", DENSE),
        ]
        _curves(axes, paper, lines)
        axes.axhline(0.05, color="0.6", lw=0.8)
        axes.set(title=f"T = {length}", yscale="log")
    panels[0].set_ylabel("mean squared error")
    caption = (
        "Adding task with T = 100, 400, 1000; the grey line is where it counts as solved, 0.05. Lines: validation. "
    )
    return _finish(figure, panels), caption + OPEN


def figure_6(paper: Paper) -> tuple[Figure, str]:
    """Accuracy by epoch on both MNIST tasks."""
    figure, panels = _panels(2)
    for axes, task in zip(panels, ("smnist", "psmnist"), strict=True):
        lines = [Series("wRNN n=256, c=16", f"wrnn_{task}", WAVE), Series("iRNN n=256", f"irnn_{task}", DENSE)]
        _curves(axes, paper, lines)
        _curves(axes, paper, lines, training=True)
        axes.set(title={"smnist": "sMNIST", "psmnist": "psMNIST"}[task], xscale="symlog", xlim=(0, 260))
    panels[0].set_ylabel("accuracy (%)")
    caption = (
        "Accuracy by epoch. Lines: validation accuracy; faint: accuracy on single training batches (the paper's plot"
        " reads as test accuracy, its text says training accuracy). "
    )
    return _finish(figure, panels), caption + OPEN


def figure_7(paper: Paper) -> tuple[Figure, str]:
    """Accuracy on psMNIST by number of parameters."""
    figure, (axes,) = _panels(1, width=5.5)
    rows = [cell for cell in read_cells(paper.content) if cell.table == "Figure 7"]
    rows += [
        cell
        for cell in read_cells(paper.content)
        if cell.table == "Table 2" and cell.experiments in (("wrnn_psmnist",), ("irnn_psmnist",))
    ]
    for cell in rows:
        look = WAVE if cell.experiments[0].startswith("wrnn") else DENSE
        count = parameter_counts(build(paper.experiments.config(cell.experiments[0], "corrected")))["parameters_total"]
        assert cell.published is not None
        axes.plot([count], [cell.published], look.marker, mfc="none", color=look.colour, ms=7)
        ours = measured(paper.placed, paper.experiments, cell.experiments[0], cell.metric)
        if ours and ours.mean is not None:
            axes.plot([count], [ours.mean], look.marker, color=look.colour, ms=5)
            if ours.share < 1:
                epochs = ours.runs[0].budget["epochs"]
                axes.annotate(f"{epochs:g} epochs", (count, ours.mean), (4, -8), textcoords="offset points", fontsize=6)
    for label, look in (("wRNN", WAVE), ("iRNN", DENSE)):
        axes.plot([], [], look.marker, color=look.colour, label=f"{label}, ours")
        axes.plot([], [], look.marker, color=look.colour, mfc="none", label=f"{label}, quoted")
    axes.set(xlabel="parameters, biases among them", ylabel="psMNIST test accuracy (%)", xscale="log")
    axes.legend(frameon=False)
    return (
        figure,
        "psMNIST test accuracy by number of parameters. Open markers: quoted, read off the plot. Filled: ours.",
    )


def figure_8(paper: Paper) -> tuple[Figure, str]:
    """Accuracy by epoch on noisy sequential CIFAR-10."""
    lines = [Series("wRNN n=256, c=16", "wrnn_nscifar10", WAVE), Series("iRNN n=529", "irnn_nscifar10", DENSE)]
    return _accuracy(paper, lines, "nsCIFAR10 accuracy by epoch. ")


def figure_13(paper: Paper) -> tuple[Figure, str]:
    """A linear layer against the wRNN."""
    lines = [Series("wRNN n=256, c=16", "wrnn_smnist", WAVE), Series("one linear layer", "linear_smnist", OTHER)]
    return _accuracy(paper, lines, "sMNIST: a linear layer on the 784 pixels against the wRNN. ")


def figure_14(paper: Paper) -> tuple[Figure, str]:
    """Only the readout is trained."""
    lines = [Series("wRNN, frozen", "wrnn_smnist_frozen", WAVE), Series("iRNN, frozen", "irnn_smnist_frozen", DENSE)]
    return _accuracy(
        paper, lines, "sMNIST with recurrence and input map left as they start, only the readout trained. "
    )


def figure_17(paper: Paper) -> tuple[Figure, str]:
    """Three starts of the kernel."""
    lines = [
        Series("shift", "wrnn_smnist", WAVE),
        Series("random", "wrnn_smnist_random_u", DENSE),
        Series("identity", "wrnn_smnist_dirac_u", LARGE),
    ]
    return _accuracy(paper, lines, "sMNIST accuracy of the wRNN by the start of its kernel. ")


CURVES: dict[str, Callable[[Paper], tuple[Figure, str]]] = {
    "Figure 3": figure_3,
    "Figure 5": figure_5,
    "Figure 6": figure_6,
    "Figure 7": figure_7,
    "Figure 8": figure_8,
    "Figure 13": figure_13,
    "Figure 14": figure_14,
    "Figure 17": figure_17,
}

OPEN = "Open markers: quoted, read off the paper's plot."


def _accuracy(paper: Paper, lines: Sequence[Series], caption: str) -> tuple[Figure, str]:
    figure, panels = _panels(1, width=5.5)
    _curves(panels[0], paper, lines)
    panels[0].set(ylabel="accuracy (%)", xscale="symlog", xlim=(0, 260))
    return _finish(figure, panels), caption + "Lines: ours on validation. " + OPEN


def _panels(count: int, width: float = 9.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 3.2), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _finish(figure: Figure, panels: Sequence[Axes]) -> Figure:
    for axes in panels:
        if axes.get_xlabel() == "epochs":
            axes.set_xticks([0, 1, 3, 10, 30, 100, 250], ["0", "1", "3", "10", "30", "100", "250"])
            axes.minorticks_off()
    named: dict[str, Artist] = {}
    for axes in panels:
        for artist, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named[str(label)] = artist
    labels = sorted(named, key=lambda label: (label.endswith("quoted"), label))
    columns = min(max(len(labels), 1), 6 if len(panels) > 1 else 2)
    if sum(map(len, labels)) > 80:  # letters; wider than the page
        columns = -(-len(labels) // 2)
        figure.set_figheight(figure.get_figheight() + 0.4)
    figure.legend([named[label] for label in labels], labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _curves(axes: Axes, paper: Paper, lines: Sequence[Series], training: bool = False) -> None:
    """Our curves, one a seed, and the quoted points; or, faint, those of single training batches alone."""
    missing = []
    for line in lines:
        axis = axis_of(paper.experiments.config(line.experiment).task.name)
        metric = axis.metric.replace("val/", "train/") if training else axis.metric
        per_tick = 1 if axis.unit == "epochs" else 1000
        runs = longest(paper.placed, paper.experiments, line.experiment)
        label: str | None = line.label
        for run in runs:
            x, y = course(run, axis, metric)
            style: dict[str, Any] = {"lw": 0.5, "alpha": 0.35} if training else {"lw": 1.3}
            dot = line.look.marker if len(x) < 5 and not training else ""
            axes.plot(
                [place / per_tick for place in x], y, line.look.line, marker=dot, ms=3, color=line.look.colour,
                label=None if training else label, **style,
            )  # fmt: skip
            label = None
        axes.set_xlabel("epochs" if axis.unit == "epochs" else "thousand optimizer steps")
        if training:
            continue
        if not runs:
            missing.append(line.label)
        quoted = paper.content["curves"].get(line.experiment, [])
        if quoted:
            places = [[x / per_tick for x, _ in quoted], [y for _, y in quoted]]
            axes.plot(
                *places, line.look.marker, mfc="none", ms=4, color=line.look.colour, label=f"{line.label}, quoted"
            )
    if missing:
        axes.set_title("not run: " + ", ".join(missing), fontsize=6, loc="right", y=-0.32)
