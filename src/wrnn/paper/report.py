"""`results/paper.md` and `paper.tex`: every table with published beside measured, made from the ledger alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from wrnn.compare.tables import LATEX, MARKDOWN, escaped
from wrnn.paper import followed_up
from wrnn.paper.cells import (
    SEEDS_NEEDED,
    SOLVED,
    VERDICTS,
    Answer,
    Experiments,
    Measured,
    Placed,
    answer,
    experiment_names,
    place,
    published,
    read_cells,
    scale_of,
    start_name,
)
from wrnn.paper.claims import Claim, evaluate
from wrnn.paper.curves import axis_of, course, first_reaching, longest, points
from wrnn.paper.ledger import Ledger, Record

LEDGER_WORD = "paths.ledger_dir=results/ledger"


@dataclass
class Paper:
    """All that the report says, before it is written.

    Attributes:
        ledger, placed, experiments: where it comes from.
        content: of published.yaml.
        answers: one a cell that is ours to run.
        claims: see `wrnn.paper.claims`.
        pictures: figures by name: caption, and what is missing in them.
        waves: rows of measures of the states of trained models.
        models: trained models by experiment, as the figures load them.
    """

    ledger: Ledger
    placed: Placed
    experiments: Experiments
    content: dict[str, Any]
    answers: list[Answer]
    claims: list[Claim]
    pictures: dict[str, str] = field(default_factory=dict)
    waves: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, object] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Cells by verdict."""
        found = Counter(one.verdict for one in self.answers)
        return {verdict: found[verdict] for verdict in VERDICTS}


def judge(ledger: Ledger, experiments: Experiments) -> Paper:
    """Hold a ledger against all that is published."""
    content = published()
    placed = place(ledger, experiments, experiment_names(content))
    answers = [answer(cell, placed, experiments) for cell in read_cells(content)]
    claims = [evaluate(claim, placed, experiments) for claim in content["claims"]]
    return Paper(ledger, placed, experiments, content, answers, claims)


def command(names: Iterable[str]) -> str:
    """What runs experiments with as many seeds as a verdict needs."""
    seeds = ",".join(map(str, range(SEEDS_NEEDED)))
    return f"python src/train.py -m experiment={','.join(dict.fromkeys(names))} seed={seeds} {LEDGER_WORD}"


def markdown(paper: Paper) -> str:
    """The report."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in paper.counts.items())
    parts = [
        "# The paper, regenerated\n\n"
        "Made by `make paper`. *measured*: our runs of the default preset `corrected`, from `results/ledger/`; "
        "`released_code` stands beside it where it was run. *quoted*: printed in Keller et al. 2024, or read off its "
        "plots, from `published.yaml`. By hand are only the questions and answers under *Followed up* "
        "(`followed_up.yaml`).\n\n"
        f"**{len(paper.answers)} cells: {counts}.** From {len(paper.ledger.records)} runs. *reproduced* asks for "
        f"{SEEDS_NEEDED} seeds, the published budget (for the step that solved a task: until it was solved) and a "
        "number inside the band; *differs* for the same and a number outside; *partial budget* is everything that was "
        "run with less. Bands marked `paper` rest on its numbers and their spread, those marked `ours` are our own "
        "choice.\n"
    ]
    if paper.ledger.problems:
        lines = "\n".join(f"- {problem}" for problem in paper.ledger.problems)
        parts.append(f"What was skipped of the ledger:\n\n{lines}\n")
    parts.append("## Claims\n\n" + _table(claims_frame(paper.claims)))
    needed = [name for claim in paper.claims for name in claim.needs]
    if needed:
        parts.append(f"What they still need:\n\n    {command(needed)}\n")
    costs, untimed = costs_frame(paper)
    parts.append(
        f"## What to run next\n\nWhat claims and cells lack of their published budget with {SEEDS_NEEDED} seeds: "
        "claims first, then cells, the cheapest first. Hours of one run after another at the highest speed that the "
        "ledger has for the experiment on that hardware, beside whatever else the machine did.\n\n" + _table(costs)
    )
    if untimed:
        parts.append(
            f"Not timed, as the ledger has no finished run of them on one machine throughout: {', '.join(untimed)}.\n"
        )
    follow_ups = followed_up.entries()
    for name, table in paper.content["tables"].items():
        answers = [one for one in paper.answers if one.cell.table == name]
        parts.append(f"## {name}\n\n{table['caption']}.\n")
        if "note" in table:
            parts.append(f"{table['note'].strip()}\n")
        parts.append(_table(cells_frame(paper, name)))
        tabled = {experiment for one in answers for experiment in one.cell.experiments}
        said = [
            followed_up.sentence(one, paper.placed, paper.experiments)
            for one in follow_ups
            if one["experiment"] in tabled
        ]
        if any(said):
            parts.append("Followed up:\n\n" + "\n".join(f"- {line}" for line in said if line) + "\n")
        short = [n for one in answers if one.verdict in VERDICTS[2:] for n in one.cell.experiments]
        if short:
            parts.append(f"Whole, with {SEEDS_NEEDED} seeds:\n\n    {command(short)}\n")
    for name, table in paper.content["settings"].items():
        frame, same, cells = settings_frame(paper, name)
        parts.append(f"## {name}\n\n{table['caption']}; {same} of {cells} as published (quoted).\n\n{_table(frame)}")
    parts.append(
        "## What was tried beside the published settings\n\nRuns that differ from an experiment in up to three "
        "settings.\n\n" + _table(variations_frame(paper))
    )
    parts.append(
        "## Along the paper's learning curves\n\nPoints read off its plots, to about a digit, beside our validation at "
        "the same step or epoch: what runs short of the published budget can already be held against. Each seed counts "
        "with its longest run. Copy: cross-entropy / 50; adding: mean squared error; images: accuracy in %.\n\n"
        + _table(curves_frame(paper))
    )
    quoted = "".join(
        f" The paper's plot has {row['level']} % of the test images after up to {found:g} epochs (quoted)."
        for row in paper.content["faster"]
        if (found := first_reaching(row["level"], *zip(*paper.content["curves"][row["than"]], strict=True)))
    )
    parts.append(
        "## Faster than the paper's schedule\n\nRuns with settings of our own, and after how many epochs those with "
        "the published ones were as good on validation. Test accuracies are of the weights that were best there."
        f"{quoted}\n\n{_table(faster_frame(paper))}"
    )
    parts.append(
        f"Whole, with {SEEDS_NEEDED} seeds:\n\n    {command(row['experiment'] for row in paper.content['faster'])}\n"
    )
    if paper.waves:
        parts.append(
            "## Waves of trained models\n\nStates over the first test sequence, of runs whose weights were kept, "
            "before training and after. Velocities are towards lower neuron indices. Dimensions: participation ratio "
            "of the states. Inputs remembered: memory capacity for random numbers, read from 2,000 sequences (more "
            "give some points more), where the task has one input.\n\n" + _table(pd.DataFrame(paper.waves))
        )
    tabled = {name for one in paper.answers for name in one.cell.experiments}
    tabled |= {row["experiment"] for row in paper.content["faster"]}
    pictured = [n for n in experiment_names(paper.content) if n not in tabled and n not in paper.placed.runs]
    parts.append("## Figures\n")
    if pictured:
        parts.append(f"What figures alone show and nobody has run:\n\n    {command(pictured)}\n")
    if paper.pictures:
        parts += [
            f"### {name}\n\n{caption}\n\n![{name}](figures/{file_name(name)}.png)\n"
            for name, caption in paper.pictures.items()
        ]
    parts.append(
        "## Runs\n\nSteps a second under whatever else the machine did. A `+` at a commit: files differed from it.\n\n"
        + _table(runs_frame(paper))
    )
    return "\n".join(parts)


def latex(paper: Paper) -> str:
    """The tables with measured numbers, a `table` each, for the package booktabs."""
    frames = {"Claims": claims_frame(paper.claims)}
    frames |= {
        f"{name}. {table['caption']}": cells_frame(paper, name) for name, table in paper.content["tables"].items()
    }
    frames |= {
        f"{name}. {table['caption']}": settings_frame(paper, name)[0]
        for name, table in paper.content["settings"].items()
    }
    parts = []
    for caption, frame in frames.items():
        styler = escaped(frame, LATEX).style.hide(axis="index")
        parts.append(
            styler.to_latex(
                hrules=True,
                column_format="l" * len(frame.columns),
                caption=caption.translate(LATEX),
                position_float="centering",
            )
        )
    return "\n".join(parts)


def file_name(figure: str) -> str:
    """`Figure 2` -> figure_02."""
    return f"figure_{int(figure.split()[-1]):02d}"


def claims_frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """A row a claim."""
    return pd.DataFrame(
        [
            {
                "claim": one.text,
                "where": one.where,
                "wanted": one.wanted,
                "measured": one.found or "-",
                "state": one.state,
                "rests on": one.basis,
            }
            for one in claims
        ]
    )


def cells_frame(paper: Paper, name: str) -> pd.DataFrame:
    """A row a cell of one table; numbers that the paper takes from elsewhere are named with their source."""
    unit = paper.content["tables"][name].get("column", "")
    rows = []
    for one in paper.answers:
        cell = one.cell
        if cell.table != name:
            continue
        column = f"{unit}={cell.column}" if unit else cell.column
        quoted = as_printed(cell.published) + (f" ± {as_printed(cell.spread)}" if cell.spread is not None else "")
        if cell.origin:
            quoted += f" ({cell.origin})"
        rows.append(
            [
                cell.row,
                column,
                quoted,
                _shown(one, one.measured),
                number(one.measured.spread, cell.metric) if one.measured and one.measured.spread is not None else "",
                str(len(one.measured.runs)) if one.measured else "",
                one.verdict + (f": {one.remark}" if one.remark else ""),
                _band_words(one),
                _released(one),
                " ".join(run.id[:6] for run in one.measured.runs) if one.measured else one.experiment,
            ]
        )
    heads = [
        "",
        "cell",
        "published (quoted)",
        "measured",
        "sd over seeds",
        "n",
        "verdict",
        "band",
        "released_code",
        "runs, or experiment",
    ]
    frame = pd.DataFrame(rows, columns=heads)
    return frame.drop(columns=[head for head in ("released_code", "sd over seeds") if frame[head].eq("").all()])


def curves_frame(paper: Paper) -> pd.DataFrame:
    """A row a point of a published curve that our runs have reached."""
    rows = []
    for one in points(paper.content, paper.placed, paper.experiments):
        metric = one.metric
        off = (
            f"{one.mean - one.published:+.1f} points"
            if metric.endswith("/accuracy")
            else (f"{one.mean / one.published:.2g} times" if one.published else "")
        )
        rows.append(
            {
                "experiment": one.experiment,
                "at": f"{one.x:,} {one.unit}" if one.x != 1 else "1 epoch",
                "published (quoted)": as_printed(one.published),
                "measured": number(one.mean, metric),
                "sd over seeds": "" if one.spread is None else number(one.spread, metric),
                "n": str(len(one.values)),
                "ours to theirs": off,
            }
        )
    return pd.DataFrame(rows)


def faster_frame(paper: Paper) -> pd.DataFrame:
    """A row a run of a schedule of ours that is there to be faster than the paper's, then those of the paper's."""
    rows = []
    for row in paper.content["faster"]:
        axis = axis_of(paper.experiments.config(row["experiment"]).task.name)
        runs = [
            (name, run)
            for name in (row["experiment"], row["than"])
            for run in longest(paper.placed, paper.experiments, name)
            if course(run, axis)[1]
        ]
        usual = [course(run, axis) for name, run in runs if name == row["than"]]
        for name, run in runs:
            best = max(course(run, axis)[1])
            there = (first_reaching(best, *one) for one in usual)
            rows.append(
                {
                    "experiment": name,
                    "seed": str(run.seed),
                    "epochs": f"{run.budget['epochs']:g}",
                    "best on validation": number(best, axis.metric),
                    f"epochs of {row['than']} until there": ", ".join(
                        "never" if x is None else f"{x:.0f}" for x in there
                    ),
                    "test accuracy": number(_value(run, headline(run)), headline(run)),
                    "run": run.id[:6],
                }
            )
    return pd.DataFrame(rows)


def costs_frame(paper: Paper) -> tuple[pd.DataFrame, list[str]]:
    """A row an experiment that claims or cells lack runs of, with what they cost; and those that were never timed."""
    wanted = {name: claim.where for claim in reversed(paper.claims) for name in claim.needs}
    cells = {
        name: one.cell.table for one in paper.answers if one.verdict in VERDICTS[2:] for name in one.cell.experiments
    }
    rows, untimed = [], []
    for name, where in {**cells, **wanted}.items():
        runs = paper.placed.runs.get(name, [])
        timed = [(run.steps_per_second, run) for run in runs if run.steps_per_second and "before" not in run.hardware]
        if not timed:
            untimed.append(name)
            continue
        speed, fastest = max(timed, key=lambda pair: pair[0])
        whole = {run.seed for run in runs if run.preset == "corrected" and paper.experiments.share(name, run) >= 1}
        missing = max(0, SEEDS_NEEDED - len(whole))
        unit, budget = paper.experiments.budget(name)
        steps = budget if unit == "steps" else budget * fastest.budget["steps"] / fastest.budget["epochs"]
        hours = missing * steps / speed / 3600
        row = {
            "experiment": name,
            "for": where,
            "lacks": f"{missing} x {budget:,} {unit}",
            "steps/s": f"{speed:.3g}",
            "hardware": _hardware(fastest),
            "hours": f"{hours:.3g}",
        }
        rows.append((name not in wanted, hours, row))
    return pd.DataFrame([row for *_, row in sorted(rows, key=lambda one: one[:2])]), sorted(untimed)


def _shown(one: Answer, measured: Measured | None) -> str:
    if measured is None:
        return ""
    reached, seeds = len(measured.numbers), len(measured.values)
    return number(one.value(measured), one.cell.metric) + (f" ({reached} of {seeds} seeds)" if reached < seeds else "")


def _released(one: Answer) -> str:
    if one.released is None:
        return ""
    return f"{_shown(one, one.released)} (n={len(one.released.runs)}, {100 * one.released.share:.3g} %)"


def _band_words(one: Answer) -> str:
    cell = one.cell
    if cell.published is None:
        return f"never ({cell.band_is})"
    low, high = cell.band
    low_text = "" if low is None else number(low, cell.metric)
    high_text = "" if high is None else number(high, cell.metric)
    return (f"up to {high_text}" if low in (None, 0) else f"{low_text} to {high_text}") + f" ({cell.band_is})"


def number(value: float | None, metric: str) -> str:
    """A number as the table shows it: accuracy in %, steps as whole numbers, errors with two digits; `-` for none."""
    if value is None:
        return "never" if metric == SOLVED else "-"
    if metric == SOLVED:
        return f"{value:,.0f}"
    if metric.endswith("/accuracy") or not metric:
        return f"{value:.2f}".rstrip("0").rstrip(".") if value == round(value, 1) else f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.1 else f"{value:.1e}"


def as_printed(value: float | None) -> str:
    """A quoted number with all its digits, but for zeros at the end."""
    return "never" if value is None else f"{value:,g}"


def settings_frame(paper: Paper, name: str) -> tuple[pd.DataFrame, int, int]:
    """Published settings beside ours: the frame, how many are the same, and of how many."""
    table = paper.content["settings"][name]
    rows, same, cells = [], 0, 0
    for row in table["rows"]:
        shown: dict[str, str] = {"": row["name"]}
        for column, quoted in zip(table["columns"], row["published"], strict=True):
            ours = _setting(paper.experiments.config(row["experiment"].format(column), "corrected"), row["key"])
            is_same = ours == quoted
            same, cells = same + is_same, cells + 1
            shown[f"{table['column']}={column}"] = (
                f"{_word(quoted)}" if is_same else f"{_word(quoted)}; ours {_word(ours)}"
            )
        rows.append(shown)
    return pd.DataFrame(rows), same, cells


def _setting(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return start_name(value) if key.endswith("init.weight") else value


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def variations_frame(paper: Paper) -> pd.DataFrame:
    """A row a run that is no experiment's but near one."""
    rows = []
    for name, found in sorted(paper.placed.variations.items()):
        for run, off in found:
            metric = headline(run)
            rows.append(
                {
                    "experiment": name,
                    "preset": run.preset,
                    "seed": str(run.seed),
                    "differs in": "; ".join(f"{key}: {_word(new)} for {_word(old)}" for key, (old, new) in off.items()),
                    "budget": _budget(run),
                    "metric": metric,
                    "measured": number(_value(run, metric), metric),
                    "solved at": _solved(run),
                    "run": run.id[:6],
                }
            )
    return pd.DataFrame(rows)


def headline(run: Record) -> str:
    """The test metric that a run is judged by."""
    return str(run.settings["task"]["monitor"]["metric"]).replace("val/", "test/")


def _value(run: Record, metric: str) -> float | None:
    value = run.results.get(metric)
    return None if value is None else float(value) * scale_of(metric)


def _solved(run: Record) -> str:
    """The step at which a task that can be solved was, by which metric."""
    if SOLVED not in run.results:
        return ""
    watched = run.settings["task"]["monitor"]["solved_metric"]
    return f"{number(run.results[SOLVED], SOLVED)}, by {watched}"


def _budget(run: Record) -> str:
    return f"{run.budget['steps']:,} steps, {run.budget['epochs']:g} epochs"


def runs_frame(paper: Paper) -> pd.DataFrame:
    """A row a record: what it used and where it came from."""
    homes = {run.id: name for name, runs in paper.placed.runs.items() for run in runs}
    homes |= {run.id: f"near {name}" for name, found in paper.placed.variations.items() for run, _ in found}
    rows = []
    for run in sorted(paper.ledger.records, key=lambda run: (homes.get(run.id, "~"), run.preset, run.seed, run.date)):
        metric = headline(run)
        used = (
            f"; {100 * paper.experiments.share(homes[run.id], run):.3g} %"
            if homes.get(run.id) in paper.placed.runs
            else ""
        )
        rows.append(
            {
                "run": run.id[:6],
                "experiment": homes.get(run.id, "none"),
                "preset": run.preset,
                "seed": str(run.seed),
                "budget": _budget(run) + used,
                "metric": metric,
                "measured": number(_value(run, metric), metric),
                "solved at": _solved(run),
                "steps/s": "" if run.steps_per_second is None else f"{run.steps_per_second:.3g}",
                "hardware": _hardware(run),
                "commit": " ".join(run.commits),
                "date": run.date[:10],
                "command": f"python src/train.py {' '.join(run.overrides)}",
            }
        )
    return pd.DataFrame(rows)


def _hardware(run: Record) -> str:
    all_of_it = [*run.hardware.get("before", []), run.hardware]
    return "; then ".join(f"{one['gpu'] or one['cpu']}, threads: {one['threads']}" for one in all_of_it)


def _table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "None yet.\n"
    return escaped(frame, MARKDOWN).to_markdown(index=False, disable_numparse=True) + "\n"
