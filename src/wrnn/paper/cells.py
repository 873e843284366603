"""Published numbers, and which runs of the ledger are held against them.

A run belongs to the experiment whose settings it shares, whatever command made it; one that differs in a few is a
variation of the nearest, and stands beside it as what was tried.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf

from wrnn.config import BETTER, identity
from wrnn.errors import ConfigError
from wrnn.paper.ledger import VALIDATED, Ledger, Record
from wrnn.schema import compose_config

PUBLISHED = Path(__file__).with_name("published.yaml")
SEEDS_NEEDED = 3
MAX_DIFFERENCES = 3  # of a variation from its experiment

Verdict = Literal["reproduced", "differs", "partial budget", "not run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SOLVED = "solved_step"


@dataclass(frozen=True)
class Cell:
    """A published number.

    Attributes:
        table, row, column: where it stands.
        metric: key of results.json.
        pick: `best` over seeds or `mean`.
        published: in the unit of the table; None where it was never reached.
        spread: published standard deviation.
        band: (low, high) to accept, None for an open end; (None, None) with `published` None: never reached.
        band_is: `paper` or `ours`.
        experiments: whose runs are held against it.
        origin: of a number that the paper quotes itself; it is held against our run of that system all the same.
    """

    table: str
    row: str
    column: str
    metric: str
    pick: str
    published: float | None
    spread: float | None
    band: tuple[float | None, float | None]
    band_is: str
    experiments: tuple[str, ...]
    origin: str

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return BETTER.get(self.metric.split("/")[-1]) == "max"


@dataclass(frozen=True)
class Measured:
    """What the runs of one experiment under one preset give.

    Attributes:
        values: one a seed, None where a threshold was never reached.
        runs: the records they are of.
        share: of the published budget that each of these runs used at least, at most 1.
        is_whole: whether the whole budget would give the same values: it was used, or what is asked for is the step at
            which the task was solved, and it was.
    """

    values: list[float | None]
    runs: list[Record]
    share: float
    is_whole: bool

    @property
    def numbers(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where one never got there."""
        return statistics.fmean(self.numbers) if self.numbers and len(self.numbers) == len(self.values) else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, of the sample."""
        return statistics.stdev(self.numbers) if len(self.numbers) > 1 and self.mean is not None else None


@dataclass(frozen=True)
class Answer:
    """A cell, what was measured for it under each preset, and the verdict on `corrected`."""

    cell: Cell
    experiment: str
    measured: Measured | None
    released: Measured | None
    verdict: Verdict
    remark: str

    def value(self, measured: Measured | None) -> float | None:
        """The number to hold against the published one."""
        return None if measured is None else number_of(self.cell, measured)


class Experiments:
    """The options of conf/experiment/, composed when they are asked for.

    Args:
        conf: the folder of the configs.
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.names = sorted(path.stem for path in (conf / "experiment").glob("*.yaml"))
        self._composed = cache(self._compose)
        self.settings = cache(lambda name, preset: flat(identity(self.config(name, preset))))

    def config(self, name: str, preset: str = "corrected") -> DictConfig:
        """The config of an experiment."""
        return self._composed(name, preset)

    def _compose(self, name: str, preset: str) -> DictConfig:
        return compose_config(f"experiment={name}", f"preset={preset}", conf=self.conf)

    def budget(self, name: str, preset: str = "corrected") -> tuple[str, int]:
        """The published budget: `steps` or `epochs`, and how many."""
        task = self.config(name, preset).task
        return ("steps", task.max_steps) if task.max_steps > 0 else ("epochs", task.max_epochs)

    def share(self, name: str, run: Record) -> float:
        """How much of the published budget a run used, at most 1."""
        unit, published = self.budget(name, run.preset)
        return min(1.0, float(run.budget[unit]) / published)


@cache
def experiments_in(conf: Path) -> Experiments:
    """The experiments of a folder of configs, the same object for the same folder: each is composed once."""
    return Experiments(conf)


@dataclass
class Placed:
    """Where the records of a ledger belong; those of no experiment are left out.

    Attributes:
        runs: by experiment, those with its settings.
        variations: by experiment, those that differ in a few or ran for longer, each with the differences.
    """

    runs: dict[str, list[Record]] = field(default_factory=dict)
    variations: dict[str, list[tuple[Record, dict[str, tuple[Any, Any]]]]] = field(default_factory=dict)


def place(ledger: Ledger, experiments: Experiments, names: Sequence[str]) -> Placed:
    """Give each record to the experiment, of those named, that it is nearest to."""
    placed = Placed()
    starts = {name: experiments.config(name) for name in names}
    for run in ledger.records:
        found: dict[str, dict[str, tuple[Any, Any]]] = {}
        for name, cfg in starts.items():
            if (cfg.model.name, cfg.task.name) == (run.model, run.task) and run.preset in cfg.model.presets:
                found[name] = deviations(experiments.settings(name, run.preset), run)
        nearest = min(found, key=lambda name: _distance(found[name]), default=None)
        if nearest is None or len(found[nearest]) > MAX_DIFFERENCES:
            continue
        if off := found[nearest] or _longer(nearest, run, experiments):
            placed.variations.setdefault(nearest, []).append((run, off))
        else:
            placed.runs.setdefault(nearest, []).append(run)
    return placed


def _distance(differences: Mapping[str, Any]) -> tuple[int, int]:
    """How many settings differ; of as many, an experiment on the same task is nearer."""
    return len(differences), sum(key.startswith("task.") for key in differences)


def _longer(name: str, run: Record, experiments: Experiments) -> dict[str, tuple[Any, Any]]:
    unit, published = experiments.budget(name, run.preset)
    return {f"task.max_{unit}": (published, run.budget[unit])} if run.budget[unit] > published else {}


_SEED_KEYS = ("seed", "preset", "task.datamodule.order_seed")


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted key, each choice once: without seeds, a start or a data set by its name alone."""
    found = dict(_flat(settings, ""))
    twice = ("images", "task.datamodule.train_set", "task.datamodule.test_set", "init", "input_init", "scheduler.drop")
    targets = {str(value) for key, value in found.items() if key.startswith("images.") and key.endswith("_target_")}
    found = {key: value for key, value in found.items() if key not in _SEED_KEYS and not key.startswith(twice)}
    if targets:
        names = {target.rsplit(".", 1)[-1] for target in targets}
        found["data"] = ", ".join(sorted({"CIFAR10" if name == "ImageFolder" else name for name in names}))
    return found


def _flat(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path.endswith("init.weight"):
        yield path, start_name(node)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def start_name(node: Any) -> str:
    """The start of a weight in a word: `shift`, `identity`, `random`; unusual settings in brackets."""
    if node is None:
        return "random"
    name = str(node["_target_"]).rsplit(".", 1)[-1].rstrip("_")
    usual = {"velocity": 1.0, "std": 0.001}
    more = [f"{k}={v}" for k, v in node.items() if not k.startswith("_") and usual.get(k) != v]
    return f"{name}({', '.join(more)})" if more else name


# What runs had before there was a choice, where it may be another now.
_WITHOUT = {
    "trainer.gradient_clip_algorithm": "norm",
    "model.readout.init.weight": "random",
    "model.readout.init.bias": "pytorch",
}


def deviations(expected: Mapping[str, Any], run: Record) -> dict[str, tuple[Any, Any]]:
    """Settings in which a run differs, as (expected, found). A key that a run is too old to have is no difference.

    A switch that is on is one: without the key it was off.
    """
    without = {key: False for key, value in expected.items() if value is True}
    found: dict[str, Any] = without | {key: _WITHOUT[key] for key in _WITHOUT if key in expected} | flat(run.settings)
    found |= {f"trainer.{key}": run.budget[key] for key in VALIDATED if key in run.budget}
    found |= dict(_flat(run.budget.get("callbacks", {}), "callbacks"))
    for key in ("limit_val_batches", "limit_test_batches"):
        if run.budget.get(key) is not None and (run.budget[key] != 1 or isinstance(run.budget[key], int)):
            found[f"trainer.{key}"] = run.budget[key]
    return {
        key: (expected.get(key), value)
        for key, value in found.items()
        if expected.get(key) != value and not (key not in expected and (value is None or value is False))
    }


def measured(
    placed: Placed,
    experiments: Experiments,
    experiment: str,
    metric: str,
    preset: str = "corrected",
) -> Measured | None:
    """The runs of an experiment with the largest budget, one a seed; the newest where a seed was run twice.

    What happened at the step that solved a task happened whatever budget followed. So for `solved_step` each seed
    counts: with the run that solved it, or with its largest budget. Where enough seeds did either, others that only
    began are left out.
    """
    runs = [run for run in placed.runs.get(experiment, []) if run.preset == preset]
    if not runs:
        return None
    shares = {run.id: experiments.share(experiment, run) for run in runs}
    solved = {run.id: metric == SOLVED and run.results.get(metric) is not None for run in runs}
    largest = max(shares.values())
    counted = runs if metric == SOLVED else [run for run in runs if shares[run.id] == largest]
    counted.sort(key=lambda run: (solved[run.id], shares[run.id], run.date))
    chosen = {run.seed: run for run in counted}
    ordered = [chosen[seed] for seed in sorted(chosen)]
    decided = [run for run in ordered if shares[run.id] >= 1 or solved[run.id]]
    if metric == SOLVED and len(decided) >= SEEDS_NEEDED:
        ordered = decided
    found = [run.results.get(metric) for run in ordered]
    return Measured(
        values=[None if value is None else scale_of(metric) * float(value) for value in found],
        runs=ordered,
        share=min(shares[run.id] for run in ordered),
        is_whole=all(shares[run.id] >= 1 or solved[run.id] for run in ordered),
    )


def scale_of(metric: str) -> float:
    """From results.json to a table: accuracies are in %."""
    return 100.0 if metric.endswith("/accuracy") else 1.0


def answer(cell: Cell, placed: Placed, experiments: Experiments) -> Answer:
    """Hold the runs against a cell. Of several experiments the best counts, once all of them were run in full."""
    options = []
    for name in cell.experiments:
        ours, released = (
            measured(placed, experiments, name, cell.metric, preset) for preset in ("corrected", "released_code")
        )
        options.append(Answer(cell, name, ours, released, *_judge(cell, ours)))

    def rank(option: Answer) -> tuple[float, float]:
        value = option.value(option.measured)
        if option.measured is None or value is None:
            return (-1.0 if option.measured is None else option.measured.share, float("-inf"))
        return max(option.measured.share, option.measured.is_whole), value if cell.higher_is_better else -value

    best = max(options, key=rank)
    unknown = [option.experiment for option in options if option.verdict not in ("reproduced", "differs")]
    if unknown and best.verdict in ("reproduced", "differs"):
        where = "inside" if best.verdict == "reproduced" else "outside"
        best = replace(best, verdict="partial budget", remark=f"{where} the band, but not all of {', '.join(unknown)}")
    return best


def _judge(cell: Cell, measured: Measured | None) -> tuple[Verdict, str]:
    if measured is None:
        return "not run", ""
    inside = within_band(cell, measured)
    where = "inside the band" if inside else "outside the band"
    if not measured.is_whole:
        return "partial budget", f"{100 * measured.share:.3g} % of the budget, {where}"
    count = len(measured.runs)
    if count < SEEDS_NEEDED:
        return "partial budget", f"{count} of {SEEDS_NEEDED} seeds, {where}"
    return ("reproduced" if inside else "differs"), ""


def number_of(cell: Cell, measured: Measured) -> float | None:
    """The number to hold against a cell: the mean over seeds, or the best of them; None where there is none.

    A step that was printed without a spread is that of the one seed which got there.
    """
    if cell.pick == "mean":
        alone = cell.metric == SOLVED and cell.published is not None and cell.spread is None
        return statistics.fmean(measured.numbers) if alone and measured.numbers else measured.mean
    return (max if cell.higher_is_better else min)(measured.numbers, default=None)


def within_band(cell: Cell, measured: Measured) -> bool:
    """Whether the measured number lies in the band; for a cell that was never reached, whether no seed got there."""
    if cell.published is None:
        return not measured.numbers
    value = number_of(cell, measured)
    return value is not None and inside(value, cell.band)


def inside(value: float, band: tuple[float | None, float | None]) -> bool:
    """Whether a number lies in a band with open ends."""
    low, high = band
    return (low is None or value >= low) and (high is None or value <= high)


def published() -> dict[str, Any]:
    """The content of published.yaml."""
    content = OmegaConf.to_container(OmegaConf.load(PUBLISHED))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def read_cells(content: Mapping[str, Any]) -> list[Cell]:
    """The cells of all tables, row by row. Raises: ConfigError for a row that does not fit its columns."""
    return [
        cell for name, table in content["tables"].items() for row in table["rows"] for cell in _row(name, table, row)
    ]


def _row(name: str, table: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[Cell]:
    columns, numbers = table["columns"], row["published"]
    if len(numbers) != len(columns):
        raise ConfigError(f"{PUBLISHED.name}: {name}, {row['name']}: {len(numbers)} numbers for {len(columns)} columns")
    for index, column in enumerate(columns):
        value = None if numbers[index] == "never" else float(numbers[index])
        band = row.get("band")
        if isinstance(band, list) and isinstance(band[0], list | dict):
            band = band[index]
        templates = row.get("experiments", [])
        if row.get("by_column"):
            templates = [templates[index]]
        templates = [templates] if isinstance(templates, str) else templates
        yield Cell(
            table=name, row=row["name"], column=str(column), metric=row.get("metric", ""), pick=row.get("pick", "best"),
            published=value, spread=row["spread"][index] if "spread" in row else None, band=_band(band, value),
            band_is=row.get("band_is", ""), experiments=tuple(text.format(column) for text in templates),
            origin=row.get("origin", ""),
        )  # fmt: skip


def _band(band: Any, value: float | None) -> tuple[float | None, float | None]:
    if band is None or (value is None and isinstance(band, dict)):
        return (None, None)
    if isinstance(band, list):
        return (band[0], band[1])
    assert value is not None
    if "factor" in band:
        return (value / band["factor"], value * band["factor"])
    return (0, value * band["at_most"])


def experiment_names(content: Mapping[str, Any]) -> list[str]:
    """Every experiment that is held against something published, once, in order of appearance."""
    names = [name for cell in read_cells(content) for name in cell.experiments]
    for table in content["settings"].values():
        names += [row["experiment"].format(column) for row in table["rows"] for column in table["columns"]]
    names += [name for claim in content["claims"] for name in claim["experiments"]]
    names += [row["experiment"] for row in content["faster"]]
    return list(dict.fromkeys([*names, *content["curves"], *content["pictures"]]))
