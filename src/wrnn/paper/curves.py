"""The paper's learning curves: points read off its plots beside our validation at the same step or epoch."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrnn.paper.cells import Experiments, Placed
from wrnn.paper.ledger import Record

TOLERANCE = 0.02  # how far, relative to it, the nearest validation may lie from a step


@dataclass(frozen=True)
class Axis:
    """What a task's plots show.

    Attributes:
        metric: along y, a curve of the ledger.
        scale: from the metric to the plot's unit.
        unit: along x, `steps` or `epochs`.
    """

    metric: str
    scale: float
    unit: str


AXES = {"copy": Axis("val/cross_entropy", 1 / 50, "steps"), "adding": Axis("val/mse", 1.0, "steps")}
ACCURACY = Axis("val/accuracy", 100.0, "epochs")


@dataclass(frozen=True)
class Point:
    """A point of a published curve and our values there, one a seed that trained so long."""

    experiment: str
    x: float
    unit: str
    metric: str
    published: float
    values: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, of the sample."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def axis_of(task: str) -> Axis:
    """The axes of a task's plots."""
    return AXES.get(task, ACCURACY)


def course(run: Record, axis: Axis, metric: str | None = None) -> tuple[list[float], list[float]]:
    """A run's curve in the units of the paper's plot; `metric` in place of the axis' own."""
    steps, values = run.curves.get(metric or axis.metric, ([], []))
    per_unit = run.budget["steps"] / run.budget["epochs"] if axis.unit == "epochs" else 1
    return [step / per_unit for step in steps], [axis.scale * value for value in values]


def longest(placed: Placed, experiments: Experiments, experiment: str) -> list[Record]:
    """The longest run of each seed under the preset `corrected`, the newest of several."""
    runs = [run for run in placed.runs.get(experiment, []) if run.preset == "corrected"]
    runs.sort(key=lambda run: (experiments.share(experiment, run), run.date))
    found = {run.seed: run for run in runs}
    return [found[seed] for seed in sorted(found)]


def points(content: Mapping[str, Any], placed: Placed, experiments: Experiments) -> Iterator[Point]:
    """The points of the published curves that our runs have reached."""
    for name, quoted in content["curves"].items():
        axis = axis_of(experiments.config(name).task.name)
        courses = [course(run, axis) for run in longest(placed, experiments, name)]
        for x, y in quoted:
            values = [value for one in courses if (value := _at(x, *one)) is not None]
            if values:
                yield Point(name, x, axis.unit, axis.metric, y, values)


def first_reaching(level: float, places: Sequence[float], values: Sequence[float]) -> float | None:
    """Where a rising curve is at a level or above for the first time."""
    return next((x for x, value in zip(places, values, strict=True) if value >= level), None)


def _at(x: float, places: list[float], values: list[float]) -> float | None:
    nearest = min(range(len(places)), key=lambda i: abs(places[i] - x), default=None)
    return values[nearest] if nearest is not None and abs(places[nearest] - x) <= TOLERANCE * x else None
