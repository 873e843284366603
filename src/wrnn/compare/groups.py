"""Runs of the same settings and budget as one group over its seeds, ranked within their task."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pandas as pd

from wrnn.compare.records import FINISHED, Run, one_line, say
from wrnn.config import BETTER, BUDGET, fingerprint, identity
from wrnn.errors import ConfigError
from wrnn.runs import begun, recorded_code

MODEL, PRESET = "model.name", "preset"
NICKNAMES = {
    MODEL: "model",
    "trainer.gradient_clip_val": "clip",
    "init.weight": "init",
    "input_init.weight": "input_init",
    "scheduler.scheduler": "scheduler",
}
# Roots in the order in which their keys are columns. `init` before `model`, whose core holds a copy of it.
ORDER = ("model.name", "preset", "task", "init", "input_init", "model", "optimizer", "scheduler", "trainer")
RUN_COLUMNS = (
    "task", "group", "seed", "state", "reason", "counted", "metric", "mode", "value", "solved", "solved_step",
    "gave_up", "seconds", "folder",
)  # fmt: skip
GROUP_COLUMNS = (
    "task", "rank", "metric", "mode", "mean", "sd", "n", "best", "solved", "solved_step", "gave_up", "seconds",
    "failed", "why", "group",
)  # fmt: skip
_SEED = "the run's seed"
_ORDER_SEED = "task.datamodule.order_seed"  # conf/ has it follow the run's
_DATA_SEED = re.compile(r"task\.datamodule\.\w+_seed")


@dataclass(frozen=True)
class Task:
    """What is compared within a task, and by which settings its groups differ.

    Attributes:
        name: of the task.
        metric: as in results.json.
        mode: `min` or `max`, which is better.
        curve: the metric over time that belongs to it, the monitored one where there is none.
        settings: columns of both frames in which its groups differ; the model always.
    """

    name: str
    metric: str
    mode: str
    curve: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All runs and what they come to.

    Attributes:
        tasks: by name.
        runs: a row per run, RUN_COLUMNS and a column for each setting, empty where a task has none. `counted` is false
            where a later run has the same settings and seed.
        groups: a row per group, GROUP_COLUMNS and the settings, best first within each task, and the legend's `label`.
            `failed` counts all that have not finished, those still running too; the rest is of finished runs, among
            them the `gave_up` that ended themselves before their budget.
        records: the run of each row of `runs`.
    """

    tasks: tuple[Task, ...]
    runs: pd.DataFrame
    groups: pd.DataFrame
    records: tuple[Run, ...]


def compare(runs: Sequence[Run], metric: str | None = None) -> Comparison:
    """Group and rank runs.

    Args:
        runs: at least one of them with a config.
        metric: a key of results.json to rank by; None is what each task monitors, measured on its test data. Whether
            more is better is the task's word for the monitored metric; of others, accuracies and speeds are better
            high, the rest low.

    Raises: ConfigError where no run has the metric.
    """
    if metric and not any(metric in run.results for run in runs):
        known = sorted({key for run in runs for key, value in run.results.items() if _number(value) is not None})
        raise ConfigError(f"--metric={one_line(metric)}: no run has it; there are: {one_line(', '.join(known))}")
    settings = _settings(runs)
    ids = [_group_id(run, found) for run, found in zip(runs, settings, strict=True)]
    tasks: list[Task] = []
    columns: dict[str, list[str]] = {}
    for task in sorted({_task(run) for run in runs if run.config}):
        mine = [index for index, run in enumerate(runs) if _task(run) == task]
        groups = {ids[index]: settings[index] for index in mine}
        columns[task] = _differing(list(groups.values()))
        tasks.append(_compared_by(task, [runs[index] for index in mine], metric))
    names = _short_names({key for keys in columns.values() for key in keys})
    by_name = {task.name: task for task in tasks}
    rows = [_row(run, group, by_name.get(_task(run))) for run, group in zip(runs, ids, strict=True)]
    for row, found in zip(rows, settings, strict=True):
        row.update({name: _shown(key, found[key]) if key in found else "" for key, name in names.items()})
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS[:1], *names.values(), *RUN_COLUMNS[1:]])
    numbers = dict.fromkeys(("value", "solved_step", "gave_up", "seconds"), float)
    frame = frame.astype({**numbers, "seed": "Int64", "solved": "boolean"})
    done = frame["state"] == FINISHED
    newest = frame.assign(done=done, at=[begun(run.folder) for run in runs]).sort_values(["done", "at"], kind="stable")
    frame["counted"] = ~newest.duplicated(["task", "group", "seed"], keep="last").sort_index() | frame["group"].eq("")
    for _, rows_of_one in frame[done & frame["counted"] & frame["group"].ne("")].groupby("group"):
        _say_whether_code_differs([runs[index] for index in rows_of_one.index])
    tasks = [
        Task(task.name, task.metric, task.mode, task.curve, tuple(names[key] for key in columns[task.name]))
        for task in tasks
    ]
    return Comparison(tuple(tasks), frame, _rank(frame, tasks, tuple(names.values())), tuple(runs))


def _say_whether_code_differs(runs: Sequence[Run]) -> None:
    recorded = [recorded_code(run.folder) for run in runs]
    digests = {name: {code[name] for code in recorded if name in code} for code in recorded for name in code}
    differing = sorted(name for name, found in digests.items() if len(found) > 1)
    if differing:
        say(f"{runs[0].name} and {len(runs) - 1} more are averaged, but differ in {', '.join(differing)}")


def _task(run: Run) -> str:
    return one_line(run.config.task.name) if run.config else ""


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What determines each run's result, by dotted key. A seed that follows the run's seed says so instead."""
    found: list[dict[str, Any]] = []
    for run in runs:
        if run.config is None:
            found.append({})
            continue
        plain = identity(run.config)
        plain["trainer"] |= {key: run.config.trainer.get(key) for key in BUDGET}
        found.append(_flat(plain))
    for key in {key for settings in found for key in settings if _DATA_SEED.fullmatch(key)}:
        having = [settings for settings in found if key in settings]
        same = [settings for settings in having if settings[key] == settings["seed"]]
        follows = key == _ORDER_SEED or len(same) == len(having)  # else equal numbers are a coincidence
        if follows and len({settings["seed"] for settings in same}) > 1:
            for settings in same:
                settings[key] = _SEED
    return found


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted key. An object to be built is the last word of its target, beside its arguments."""
    if not isinstance(node, Mapping):
        return {path: node}
    flat = {path: str(node["_target_"]).split(".")[-1].strip("_")} if "_target_" in node else {}
    for key, value in node.items():
        if not str(key).startswith("_"):
            flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat


def _group_id(run: Run, settings: Mapping[str, Any]) -> str:
    """The run's fingerprint with its seeds set aside."""
    if run.config is None:
        return ""
    config = deepcopy(run.config)
    config.seed = -1
    for key, value in settings.items():
        if value is _SEED:
            config.task.datamodule[key.rpartition(".")[2]] = -1
    return fingerprint(config)


def _differing(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell the groups of a task apart: the model, and what differs within one model and preset.

    What every group of a model shares follows from the model, but for the budget, which is shown. A key that is
    missing is no difference: the velocity of `shift` is not shown beside `init` unless there are two. What repeats
    another key (the rate of a schedule, a copy of `init` in the core) is left out.
    """
    shown = [MODEL]
    keys = sorted({key for settings in groups for key in settings} - {MODEL, "seed"}, key=_position)
    for key in keys:
        values: dict[tuple[Any, ...], set[str]] = {}
        having = [settings for settings in groups if key in settings]
        for settings in having:
            kind = (settings[MODEL], settings.get(PRESET) if key != PRESET else None)
            values.setdefault(kind, set()).add(json.dumps(settings[key]))
        repeats = any(all(other.get(old, _SEED) == other[key] for other in having) for old in shown)
        between = (
            key.removeprefix("trainer.") in BUDGET and len({v for several in values.values() for v in several}) > 1
        )
        if (between or any(len(several) > 1 for several in values.values())) and not repeats:
            shown.append(key)
    for key in keys:  # two groups may still look alike, one of them from before the key was there
        seen: dict[str, set[str]] = {}
        for settings in groups:
            label = json.dumps([settings.get(old, "") for old in shown])
            seen.setdefault(label, set()).add(json.dumps(settings.get(key, "")))
        if key not in shown and any(len(several) > 1 for several in seen.values()):
            shown.append(key)
    return shown


def _position(key: str) -> tuple[int, str]:
    rank = next((rank for rank, root in enumerate(ORDER) if f"{key}.".startswith(f"{root}.")), len(ORDER))
    return rank, key


def _short_names(keys: set[str]) -> dict[str, str]:
    """A column's name for each key: as few of its last words as tell it from all others."""
    ordered = sorted(keys, key=_position)
    names = {key: NICKNAMES[key] for key in ordered if key in NICKNAMES}
    taken = {*RUN_COLUMNS, *GROUP_COLUMNS, "label", *names.values()}
    for key in ordered:
        if key in names:
            continue
        words = key.split(".")
        tails = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [f".{other}" for other in ordered if other != key]
        unique = (tail for tail in tails if tail not in taken and not any(o.endswith(f".{tail}") for o in others))
        names[key] = one_line(next(unique, key))
        taken.add(names[key])
    return {key: names[key] for key in ordered}


def _compared_by(task: str, runs: Sequence[Run], metric: str | None) -> Task:
    chosen_by = [run.config.task.monitor for run in runs if run.config]
    monitors = Counter((one_line(monitor.metric), str(monitor.mode)) for monitor in chosen_by)
    (monitor, mode), _ = min(monitors.items(), key=lambda item: (-item[1], item[0]))
    chosen = metric or monitor.replace("val/", "test/", 1)
    if len(monitors) > 1 and metric is None:
        names = ", ".join(sorted({name for name, _ in monitors}))
        say(f"task {task}: runs monitor different metrics ({names}); compared by {chosen}, --metric takes another")
    if chosen.split("/")[-1] != monitor.split("/")[-1]:
        mode = BETTER.get(chosen.split("/")[-1], "max" if chosen.endswith("accuracy") else "min")
    over_time = chosen.replace("test/", "val/", 1)
    logged = over_time.startswith("val/") and any(over_time in run.results for run in runs)
    return Task(task, one_line(chosen), mode, over_time if logged else monitor, ())


def _row(run: Run, group: str, task: Task | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task": _task(run),
        "group": group,
        "state": run.state,
        "reason": run.reason,
        "folder": run.name,
    }
    if task is None or run.config is None:
        return row
    row |= {"seed": run.config.seed, "metric": task.metric, "mode": task.mode}
    row |= {key: _number(run.results.get(key)) for key in ("solved_step", "seconds")}
    row["solved"] = run.results["solved_step"] is not None if "solved_step" in run.results else None
    row["gave_up"] = float("gave_up" in run.results)
    row["value"] = _number(run.results.get(task.metric))
    if run.state == FINISHED and row["value"] is None:
        found = one_line(run.results.get(task.metric, "missing"))
        row["state"], row["reason"] = "no metric", f"{task.metric} is {found}"
        say(f"{run.folder}: {row['reason']}")
    return row


def _rank(runs: pd.DataFrame, tasks: Sequence[Task], settings: Sequence[str]) -> pd.DataFrame:
    counted = runs[runs["counted"] & runs["group"].ne("")]
    counted = counted.assign(failed=counted["state"].ne(FINISHED))
    groups = counted.groupby(["task", "group"], as_index=False, sort=True).agg(
        **{name: (name, "first") for name in [*settings, "metric", "mode"]},
        mean=("value", "mean"),
        sd=("value", "std"),
        n=("value", "count"),
        lowest=("value", "min"),
        highest=("value", "max"),
        solved=("solved", lambda solved: solved.sum(min_count=1)),
        solved_step=("solved_step", "mean"),
        gave_up=("gave_up", "sum"),
        seconds=("seconds", "mean"),
        failed=("failed", "sum"),
    )
    groups["best"] = groups["highest"].where(groups["mode"].eq("max"), groups["lowest"])
    why = {group: _why(failed) for group, failed in counted[counted["failed"]].groupby("group")}
    groups["why"] = [why[group] if n == 0 else "" for group, n in zip(groups["group"], groups["n"], strict=True)]
    groups["label"] = ""
    for task in tasks:
        mine = groups.index[groups["task"] == task.name]
        labels = [_label(groups.loc[index], task.settings) for index in mine]
        twice = {label for label, count in Counter(labels).items() if count > 1}
        for index, label in zip(mine, labels, strict=True):
            groups.loc[index, "label"] = f"{label}, {groups.loc[index, 'group']}" if label in twice else label
    order = groups["mean"].where(groups["mode"].eq("min"), -groups["mean"])
    groups = groups.assign(order=order).sort_values(["task", "order", "label"], ignore_index=True)
    ranks = groups.groupby("task")["order"].rank(method="min")
    groups["rank"] = ranks.astype("Int64")
    return groups[["task", "rank", *settings, *GROUP_COLUMNS[2:], "label"]]


def _why(failed: pd.DataFrame) -> str:
    """Outcomes and reasons of a group's runs, each once."""
    said = [f"{state}: {reason}" if reason else state for state, reason in failed[["state", "reason"]].to_numpy()]
    return "; ".join(dict.fromkeys(said))


def _label(group: "pd.Series[Any]", settings: Sequence[str]) -> str:
    first, *rest = settings
    return ", ".join([str(group[first]), *(f"{name} {group[name]}" for name in rest if group[name] != "")])


def _shown(key: str, value: Any) -> str:
    """A setting as it is read in a table."""
    if isinstance(value, list):
        return f"[{', '.join(_shown(key, item) for item in value)}]"
    if value is None and key in ("init.weight", "input_init.weight"):
        return "pytorch"  # the option's name; null leaves the weight to the framework
    return str(value).lower() if value is None or isinstance(value, bool) else one_line(value)


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        return float(value) if not isinstance(value, bool | str) and math.isfinite(value) else None
    except (TypeError, OverflowError):
        return None
