"""Where our number is not the paper's: what was tried to find out why, with the numbers of the ledger."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wrnn.config import key_to_set
from wrnn.paper.cells import SOLVED, Experiments, Placed, measured, scale_of
from wrnn.paper.ledger import Record

FOLLOWED_UP = Path(__file__).with_name("followed_up.yaml")


def entries() -> list[dict[str, Any]]:
    """The content of followed_up.yaml: `experiment`, `metric`, `asked`, `tried`, `found`."""
    content = OmegaConf.to_container(OmegaConf.load(FOLLOWED_UP))
    assert isinstance(content, list)
    return content


def sentence(entry: Mapping[str, Any], placed: Placed, experiments: Experiments) -> str:
    """One entry in words: the question, our number, that of each thing tried, the answer. Empty if nothing was run."""
    metric = entry["metric"]
    usual = measured(placed, experiments, entry["experiment"], metric)
    tried = [(settings, runs) for settings in entry["tried"] if (runs := variation(settings, entry, placed))]
    if entry["tried"] and not tried:
        return ""
    cfg = experiments.config(entry["experiment"], "corrected")
    numbers = [f"`{entry['experiment']}` {_numbers(usual.runs if usual else [], metric)}"]
    numbers += [
        f"with {', '.join(f'`{key_to_set(cfg, key)}={_word(value)}`' for key, value in settings.items())} "
        f"{_numbers(runs, metric)}"
        for settings, runs in tried
    ]
    return f"*{entry['asked']}* {metric}: {'; '.join(numbers)}. {entry['found']}"


def variation(settings: Mapping[str, Any], entry: Mapping[str, Any], placed: Placed) -> list[Record]:
    """The runs that differ from the experiment in these settings and no other: of a preset, or in a few keys.

    Each seed's longest.
    """
    if set(settings) == {"preset"}:
        runs = [run for run in placed.runs.get(entry["experiment"], []) if run.preset == settings["preset"]]
    else:
        runs = [
            run
            for run, off in placed.variations.get(entry["experiment"], [])
            if run.preset == "corrected" and {key: ours for key, (_, ours) in off.items()} == dict(settings)
        ]
    runs.sort(key=lambda run: (run.budget["steps"], run.date))
    return list({run.seed: run for run in runs}.values())


def _numbers(runs: list[Record], metric: str) -> str:
    found = [(run, run.results.get(metric)) for run in runs]
    values = [scale_of(metric) * float(value) for _, value in found if value is not None]
    if not found:
        return "not run"
    steps = sorted({round(run.budget["steps"]) for run, _ in found})
    used = f"{steps[0]:,} steps" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"
    style, off = (",.0f", ",.0f") if metric == SOLVED else (".4g", ".2g")
    spread = f" ± {statistics.stdev(values):{off}}" if len(values) > 1 else ""
    value = f"{statistics.fmean(values):{style}}{spread}" if values else "never"
    reached = f" in {len(values)} of {len(found)}" if 0 < len(values) < len(found) else ""
    return f"{value}{reached} (n={len(found)}, {used})"


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
