"""The ledger: one line of JSON for each run that ended, `results/ledger/<model>_<task>.jsonl`.

Lines are only ever added, under a lock, so many runs may end at once. A line that cannot be read is reported with its
file and number and skipped. Weights, where they are kept, lie beside it in `weights/<id>.pt`.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig

from wrnn.config import digest, identity, unusual_callbacks
from wrnn.errors import ConfigError
from wrnn.files import read_json, write_aside, writing
from wrnn.loggers import read_metrics
from wrnn.runs import ENVIRONMENT, RESULTS, load_config

SCHEMA = 1
MAX_POINTS = 600
# When a run is validated decides which weights are tested and when a task counts as solved: kept where it is not this.
VALIDATED = {"check_val_every_n_epoch": 1, "val_check_interval": 1.0}
MAX_WEIGHT_BYTES = 2**20

Curve = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Record:
    """A run that ended.

    Attributes:
        schema: of the record, `SCHEMA`.
        id: twelve hexadecimal digits that a run keeps when it is tested again: of settings, budget and first start.
        identity: the run's config hash, as in results.json.
        model, task, preset, seed: what the run is, for a reader of the file.
        settings: all that determines the result, nested as in the config; see `wrnn.config.identity`.
        budget: steps and epochs used, the limits under which evaluation ran, and callbacks that are not the usual ones.
        results: as in results.json.
        curves: (steps, values) of the monitored metric in validation and training and of the training loss, each at
            most MAX_POINTS points.
        steps_per_second: of training; it depends on what else the machine did.
        hardware: cpu, threads, gpu of the last start; `before`, where earlier starts had others: these, in order.
        commits: of every start; a `+` says that files differed from it.
        versions: of the packages, at the last start.
        date: of the last start.
        overrides: the words of the last command line that went on with it, without paths.
    """

    schema: int
    id: str
    identity: str
    model: str
    task: str
    preset: str
    seed: int
    settings: dict[str, Any]
    budget: dict[str, Any]
    results: dict[str, Any]
    curves: dict[str, Curve]
    steps_per_second: float | None
    hardware: dict[str, Any]
    commits: list[str]
    versions: dict[str, str]
    date: str
    overrides: list[str]


@dataclass(frozen=True)
class Ledger:
    """All records that could be read, and a line about each that could not."""

    folder: Path
    records: list[Record]
    problems: list[str]


def record(folder: Path) -> Record:
    """What the ledger keeps of a run folder. Raises: ConfigError where the run has not ended, or is not readable."""
    cfg = load_config(folder)
    results = read_json(folder / RESULTS)
    if results is None:
        raise ConfigError(f"{folder}: the run has not ended, {RESULTS} is missing")
    starts = (read_json(folder / ENVIRONMENT) or {}).get("starts")
    if not starts:
        raise ConfigError(f"{folder}: {ENVIRONMENT} is missing or names no start")
    settings = identity(cfg)
    budget = {
        "steps": results["steps"], "epochs": results["epochs"],
        **{key: cfg.trainer.get(key) for key in ("limit_val_batches", "limit_test_batches")},
        **{
            key: found
            for key, usual in VALIDATED.items()
            if (found := cfg.trainer.get(key, usual)) != usual or type(found) is not type(usual)
        },
        **({"callbacks": callbacks} if (callbacks := _callbacks(cfg)) else {}),
    }  # fmt: skip
    commits = [found["commit"][:9] + ("+" if found["changed"] else "") for s in starts if (found := s.get("git"))]
    content: dict[str, Any] = {
        "identity": digest(settings), "model": cfg.model.name, "task": cfg.task.name,
        "preset": cfg.preset, "seed": cfg.seed, "settings": settings, "budget": budget, "results": results,
        "steps_per_second": results.get("steps_per_second"), "hardware": _hardware_of(starts),
        "commits": list(dict.fromkeys(commits)), "versions": starts[-1]["versions"], "date": starts[-1]["date"],
        "overrides": _overrides(starts[-1]["command"]),
    }  # fmt: skip
    first = {key: starts[0].get(key) for key in ("date", "host", "process")}
    what = [content["identity"], budget, first]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return Record(schema=SCHEMA, id=name, curves=_curves(folder, cfg.task.monitor.metric), **content)


def _callbacks(cfg: DictConfig) -> dict[str, Any]:
    """Callbacks that give the results another meaning. One that ends a run early shows in its steps."""
    found = unusual_callbacks(cfg)
    found.pop("give_up", None)
    if cfg.task.monitor.solved_metric is None:
        found.pop("solved_step", None)
    return found


def _hardware_of(starts: list[dict[str, Any]]) -> dict[str, Any]:
    *before, last = (one for one, _ in groupby(start["hardware"] for start in starts))
    return {**last, **({"before": before} if before else {})}


def _overrides(command: list[str]) -> list[str]:
    """The words of a command line that say what was computed, not where."""
    where = ("paths.", "hydra.", "hydra/", "logger", "ckpt_path", "-")
    return [word for word in command[1:] if "=" in word and not word.startswith(where)]


def _curves(folder: Path, monitored: str) -> dict[str, Curve]:
    try:
        found = read_metrics(folder / "metrics.csv")
    except OSError:
        return {}
    wanted = (monitored, monitored.replace("val/", "train/"), "train/loss")
    return {key: _thinned(*found[key]) for key in wanted if key in found}


def _thinned(steps: list[int], values: list[float]) -> Curve:
    """At most MAX_POINTS of a curve, evenly spread, the first and the last among them."""
    last = len(steps) - 1
    count = min(len(steps), MAX_POINTS)
    chosen = [round(i * last / max(count - 1, 1)) for i in range(count)]
    return [steps[i] for i in chosen], [float(f"{values[i]:.5g}") for i in chosen]


def append(ledger: Path, new: Record) -> Path:
    """Add a record to the ledger's folder; returns its file. A record that is there already is not added again.

    Raises: ConfigError for one that is there already, or a folder that cannot be written to.
    """
    path = ledger / f"{new.model}_{new.task}.jsonl"
    with writing(f"paths.ledger_dir={ledger}"):
        ledger.mkdir(parents=True, exist_ok=True)
        with FileLock(ledger / ".lock"):
            if any(old.id == new.id for old in load(ledger).records):
                raise ConfigError(f"{path}: holds this run already ({new.id})")
            with path.open("a+b", buffering=0) as file:
                size = file.tell()
                whole = size == 0 or _last_byte(file) == b"\n"
                line = (b"" if whole else b"\n") + json.dumps(asdict(new)).encode() + b"\n"
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
    return path


def append_missing(ledger: Path, folders: Sequence[Path]) -> None:
    """Add the runs of these folders that the ledger lacks, and print which; what prevents it is printed.

    Raises: ConfigError for a ledger that cannot be written to.
    """
    known = {old.id for old in load(ledger).records}
    for folder in folders:
        try:
            new = record(folder)
        except ConfigError as error:
            print(f"warning: {error}", flush=True)
            continue
        if new.id not in known:
            print(f"{append(ledger, new)}: {folder} was missing", flush=True)


def _last_byte(file: Any) -> bytes:
    """What a file opened for appending ends with: a line that a crash cut short must not swallow the next."""
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def load(ledger: Path) -> Ledger:
    """All records of a ledger's folder, in the order of their files and lines. Nothing is changed."""
    records: dict[str, Record] = {}
    places: dict[str, str] = {}
    problems = []
    for path in sorted(ledger.glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            place = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                found = _parse(line)
            except ValueError as error:
                problems.append(f"{place}: skipped, {error}")
                continue
            if found.id in records:
                problems.append(f"{place}: skipped, the same run as {places[found.id]}")
                continue
            records[found.id], places[found.id] = found, place
    return Ledger(ledger, list(records.values()), problems)


def _parse(line: bytes) -> Record:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not a whole line of JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema={content.get('schema')}: this version reads schema {SCHEMA}")
    names = {field.name for field in fields(Record)}
    if names != set(content):
        missing, more = sorted(names - set(content)), sorted(set(content) - names)
        raise ValueError(
            f"not a record: misses {', '.join(missing) or 'nothing'}; unknown {', '.join(more) or 'nothing'}"
        )
    for key in ("settings", "budget", "results", "curves", "hardware"):
        if not isinstance(content[key], Mapping):
            raise ValueError(f"{key}: holds a {type(content[key]).__name__}, not an object")
    for key in ("steps", "epochs"):
        if not isinstance(content["budget"].get(key), int | float):
            raise ValueError(f"budget.{key}={content['budget'].get(key)}: must be a number")
    return Record(**content)


def keep_weights(ledger: Path, run: Record, folder: Path) -> Path:
    """Keep the tested weights of a run beside its record, with the first test sequence, which pictures show.

    Needs the task's data. Raises: ConfigError where they are larger than a MiB, or cannot be read or written.
    """
    import torch

    from wrnn.training import load_run

    loaded = load_run(folder)
    loaded.task.prepare_data()
    loaded.task.setup()
    batch = loaded.task.make_batch("test", 0, 0)
    content = {
        "core": loaded.core.state_dict(), "readout": loaded.readout.state_dict(), "inputs": batch.inputs[0].clone(),
        "target": batch.targets[0].clone(),
    }  # fmt: skip
    path = weights_path(ledger, run)
    with writing(str(path)), write_aside(path) as file:
        torch.save(content, file)
        if file.tell() > MAX_WEIGHT_BYTES:
            raise ConfigError(f"{folder}: {file.tell():,} bytes of weights are not kept; at most {MAX_WEIGHT_BYTES:,}")
    return path


def weights_path(ledger: Path, run: Record) -> Path:
    """Where the weights of a record are, if they were kept."""
    return ledger / "weights" / f"{run.id}.pt"
