"""The sentences of the paper as numbers: what the runs so far say, and which runs are still needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from wrnn.config import BETTER
from wrnn.paper.cells import (
    SEEDS_NEEDED,
    SOLVED,
    Experiments,
    Measured,
    Placed,
    inside,
    measured,
    scale_of,
)
from wrnn.paper.curves import Axis, axis_of, course, longest


@dataclass(frozen=True)
class Claim:
    """A claim and its state.

    Attributes:
        text, where: what the paper says, and where.
        wanted: the band in words.
        found: our number in words; empty where a run is missing. Where results of different budgets would be compared,
            it is of the best on validation up to where a run of each has come, which is then said.
        state: `holds`, `does not hold`, `so far yes`, `so far no`, `not run`, or `not yet decidable` where there
            is no such point.
        basis: the experiments with mean and standard deviation, seeds and share of the budget.
        needs: experiments that lack seeds or budget.
    """

    text: str
    where: str
    wanted: str
    found: str
    state: str
    basis: str
    needs: list[str]


def evaluate(claim: Mapping[str, Any], placed: Placed, experiments: Experiments) -> Claim:
    """Hold the runs against a claim, as it stands in published.yaml."""
    names, metric, kind = claim["experiments"], claim["metric"], claim["kind"]
    band = tuple(claim.get("band", (None, None)))
    found_runs = [measured(placed, experiments, name, metric) for name in names]
    needs = [name for name, found in zip(names, found_runs, strict=True) if not _is_whole(found)]
    where, compared = "", found_runs
    unfinished = any(one is not None and not one.is_whole for one in found_runs)
    if unfinished and kind != "value" and metric != SOLVED and all(found_runs):
        unit = axis_of(experiments.config(names[0]).task.name).unit
        if len({one.runs[0].budget[unit] for one in found_runs if one}) > 1:
            compared, where = _on_validation(names, metric, placed, experiments)
    found, holds = "", None
    if all(compared):
        found, holds = _compare(kind, band, [one for one in compared if one], metric)
    if not all(found_runs):
        state = "not run"
    elif holds is None:
        state, compared = "not yet decidable", compared if all(compared) else found_runs
    else:
        state = ("holds" if holds else "does not hold") if not needs else ("so far yes" if holds else "so far no")
    return Claim(
        text=claim["text"],
        where=claim["where"],
        wanted=_wanted(kind, band),
        found=found + where,
        state=state,
        basis="; ".join(_basis(name, one, metric) for name, one in zip(names, compared, strict=True)),
        needs=needs,
    )


def _on_validation(
    names: Sequence[str], metric: str, placed: Placed, experiments: Experiments
) -> tuple[list[Measured | None], str]:
    """The best on validation of each experiment's runs until as many as are needed, or all, were still at work of each.

    And when that was. No published schedule depends on the budget, so the first part of a long run is what a short one
    is; its test was taken at its end alone.
    """
    unit = axis_of(experiments.config(names[0]).task.name).unit
    axis = Axis(metric.replace("test/", "val/"), scale_of(metric), unit)
    courses = {name: [(run, *course(run, axis)) for run in longest(placed, experiments, name)] for name in names}
    ends = [sorted((places[-1] for _, places, _ in runs if places), reverse=True) for runs in courses.values()]
    end = min(reached[:SEEDS_NEEDED][-1] if reached else 0.0 for reached in ends)
    at_most = end * (1 + 1e-3)  # epochs of a run that ended within one are rounded
    best = max if BETTER.get(metric.split("/")[-1]) == "max" else min
    found: list[Measured | None] = []
    for name, runs in courses.items():
        reached = [
            (run, best(value for place, value in zip(places, values, strict=True) if place <= at_most))
            for run, places, values in runs
            if places and places[0] <= at_most and end <= places[-1] * (1 + 1e-3)
        ]
        share = min(1.0, end / experiments.budget(name)[1])
        found.append(Measured([value for _, value in reached], [run for run, _ in reached], share, False))
    if not all(one and one.runs for one in found):
        return [None] * len(names), ""
    return found, f" (validation, up to {unit[:-1]} {end:,g})"


def _is_whole(measured: Measured | None) -> bool:
    return measured is not None and measured.is_whole and len(measured.runs) >= SEEDS_NEEDED


def _basis(name: str, measured: Measured | None, metric: str) -> str:
    if measured is None:
        return f"{name}: none"
    never = f"reached by {len(measured.numbers)} of {len(measured.values)}" if measured.numbers else "never"
    value = never if measured.mean is None else f"{measured.mean:.4g}"
    spread = "" if measured.spread is None else f" ± {measured.spread:.3g}"
    solved = metric == SOLVED and measured.is_whole and measured.mean is not None
    budget = "solved" if solved else f"{100 * measured.share:.3g} % of the budget"
    return f"{name}: {value}{spread}, n={len(measured.runs)}, {budget}"


def _compare(
    kind: str, band: tuple[float | None, float | None], measured: Sequence[Measured], metric: str
) -> tuple[str, bool | None]:
    """Our number in words, and whether it is what the claim says.

    A step that was never reached is a lower bound; one below the band decides nothing: None.
    """
    values = [one.mean for one in measured]
    if kind == "ratio":
        first, second = values
        at_least = ""
        if first is None and metric == SOLVED:
            reached = zip(measured[0].values, measured[0].runs, strict=True)
            first, at_least = fmean(float(run.results["steps"]) if v is None else v for v, run in reached), "more than "
        if first is None or second is None:
            return "never reached", False
        ratio = first / second if second else math.copysign(math.inf, first)
        return f"{at_least}{ratio:.3g}", inside(ratio, band) or (None if at_least else False)
    if any(value is None for value in values):
        return "never reached", False
    numbers = [value for value in values if value is not None]
    if kind == "value":
        return f"{numbers[0]:.4g}", inside(numbers[0], band)
    if kind == "difference":
        return f"{numbers[0] - numbers[1]:+.2f}", inside(numbers[0] - numbers[1], band)
    assert kind == "order", kind
    sign = 1 if BETTER.get(metric.split("/")[-1]) == "max" else -1
    return " > ".join(f"{number:.4g}" for number in numbers), all(sign * a > sign * b for a, b in pairwise(numbers))


def _wanted(kind: str, band: tuple[float | None, float | None]) -> str:
    if kind == "order":
        return "in this order"
    low, high = band
    if low is None or high is None:
        return f"at most {high:g}" if low is None else f"at least {low:g}"
    return f"{low:g} to {high:g}"
