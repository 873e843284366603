"""What runs a sweep holds, where they are, and how each of them stands."""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from wrnn.config import fingerprint, first_line
from wrnn.errors import ConfigError
from wrnn.files import folder_lock, read_json, write_json
from wrnn.runs import CONFIG, RESULTS, load_config

OUTCOME = "outcome.json"
LOG = "log.txt"
# How a run can end badly; outcome.json says which and why. Those below are taken up again by the next start anyway.
FAILURES = ("bad config", "diverged", "out of memory", "killed", "crashed")
UNENDED = ("not started", "running", "stopped")
FOREIGN = "foreign"


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        overrides: what its command line says.
        folder: its own.
        config: composed; None where it cannot be resolved, and then
        problem: says why.
    """

    overrides: tuple[str, ...]
    folder: Path
    config: DictConfig | None
    problem: str = ""


@dataclass(frozen=True)
class Status:
    """How a run stands: `finished`, one of FAILURES or of UNENDED, or FOREIGN where its folder holds something else.

    Attributes:
        reason: why, in a line.
        seconds: taken so far, over all starts.
        results: of a finished run.
    """

    state: str
    reason: str = ""
    seconds: float = 0.0
    results: dict[str, Any] | None = None


def plan(overrides: Sequence[str], config: DictConfig, sweep_dir: Path) -> PlannedRun:
    """The run of one job, from its overrides and its composed config."""
    try:
        name = f"{config.run_name}-{fingerprint(config)}"
    except (ConfigError, OmegaConfBaseException) as error:
        digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
        return PlannedRun(tuple(overrides), sweep_dir / f"unresolved-{digest}", None, first_line(error))
    found = sorted(sweep_dir.glob(f"*-{name[-8:]}"))  # under another run_name it would be the same run
    return PlannedRun(tuple(overrides), found[0] if found else sweep_dir / name, config)


def check_start(config: DictConfig) -> None:
    """A run of a sweep starts anew or where it was. Raises: ConfigError where another checkpoint is asked for."""
    if config.ckpt_path not in (None, "last"):
        raise ConfigError(f"ckpt_path={config.ckpt_path}: a sweep's runs start anew, or go on in their own folders")


def plan_all(
    loader: ConfigLoader, master: DictConfig, batches: Sequence[Sequence[str]], sweep_dir: Path
) -> list[PlannedRun]:
    """The runs of a sweep, each once. Raises: ConfigError; Hydra's errors where one cannot be composed."""
    runs: dict[Path, PlannedRun] = {}
    for overrides in batches:
        config = loader.load_sweep_config(master, list(overrides))
        said = list(config.hydra.overrides.task)
        with read_write(config), open_dict(config):
            del config["hydra"]  # a job's config is without it too
        check_start(config)
        planned = plan(said, config, sweep_dir)
        runs.setdefault(planned.folder, planned)
    return list(runs.values())


def status(run: PlannedRun) -> Status:
    """How the run stands, from its folder."""
    try:
        outcome = read_json(run.folder / OUTCOME) or {}
        seconds = float(outcome.get("seconds", 0.0))
        state = str(outcome.get("outcome", "not started"))
        results = read_json(run.folder / RESULTS)
        if (run.folder / CONFIG).exists() and run.config is not None:
            if fingerprint(load_config(run.folder)) != fingerprint(run.config):
                raise ConfigError(f"{run.folder}: holds another run than its name says; move it away")
    except (ConfigError, TypeError, ValueError) as error:
        return Status(FOREIGN, first_line(error))
    if results is not None:
        return Status("finished", "", seconds, results)
    if state == "finished" or (state == "running" and not in_use(run.folder)):
        state = "stopped"  # its results are gone; or nobody was left to write down how it ended
    return Status(state, str(outcome.get("reason", "")), seconds)


def set_aside_damaged(folder: Path) -> list[str]:
    """Rename records that cannot be read, so that the run can be taken up; returns a line for each."""
    said = []
    for name, read in ((RESULTS, read_json), (OUTCOME, read_json), (CONFIG, lambda path: load_config(path.parent))):
        path = folder / name
        if path.exists() and not in_use(folder):
            try:
                read(path)
            except ConfigError as error:
                path.rename(path.with_name(f"{name}.damaged"))
                said.append(f"{first_line(error)}; kept as {name}.damaged, the run is taken up again")
    return said


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder."""
    if not folder.exists():
        return False
    lock = folder_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def record(folder: Path, outcome: str, **facts: Any) -> None:
    """Write how a run stands."""
    write_json(folder / OUTCOME, {"outcome": outcome, "host": platform.node(), **facts})


def objective(results: dict[str, Any] | None, metric: str) -> float | None:
    """What a search optimises: the monitored metric at the tested checkpoint, or at the end."""
    value = (results or {}).get(f"best_{metric}", (results or {}).get(metric))
    return None if value is None else float(value)


def estimate(todo: Sequence[PlannedRun], done: Sequence[tuple[PlannedRun, Status]], at_once: int) -> str:
    """How long the rest will take, from the finished runs that are most like each; in words."""
    if not done:
        return "no run is done yet to tell how long it takes"
    total = 0.0
    for run in todo:
        for depth in range(len(_kind(run)), -1, -1):
            alike = [status.seconds for other, status in done if _kind(other)[:depth] == _kind(run)[:depth]]
            if alike:
                total += sum(alike) / len(alike)
                break
    left = timedelta(seconds=round(total / min(at_once, max(len(todo), 1))))
    return f"about {left} left, {at_once} at a time, judging by {len(done)} done"


def _kind(run: PlannedRun) -> tuple[Any, ...]:
    """What a run's duration depends on most, the most important first."""
    if run.config is None:
        return ()
    task = run.config.task
    length = task.datamodule.get("sequence_length", task.datamodule.get("delay"))
    core = run.config.model.core
    size = core.get("hidden_size", (core.get("num_channels"), core.get("ring_size")))
    return task.name, run.config.model.name, length, size
