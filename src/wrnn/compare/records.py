"""Runs as they lie in folders. What cannot be read is said in one line and never ends the comparison."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf

from wrnn.config import fingerprint, first_line
from wrnn.errors import ConfigError
from wrnn.files import read_json
from wrnn.loggers import read_metrics
from wrnn.runs import CONFIG, RESULTS, load_config
from wrnn.sweeps.plan import OUTCOME

METRICS, WAVES = "metrics.csv", "state_over_time.png"
FINISHED, UNREADABLE = "finished", "unreadable"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is now.
        name: its path below what all given folders have in common, so that it is the same on every machine.
        state: `finished`, `unreadable`, `unfinished`, or the outcome that a sweep has written.
        reason: why it is not finished, in a line.
        config: None where it cannot be read.
        results: of a finished run.
    """

    folder: Path
    name: str
    state: str
    reason: str = ""
    config: DictConfig | None = None
    results: dict[str, Any] = field(default_factory=dict)


def load(folders: Sequence[Path]) -> list[Run]:
    """All runs in and below the folders, each once, by name. Raises: ConfigError where none can be read."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
    parents = [folder.resolve().parent for folder in folders]
    top = Path(os.path.commonpath(parents))
    found = sorted({path for folder in folders for path in _find(folder.resolve())})
    runs = [_load(path, one_line(path.relative_to(top).as_posix())) for path in found]
    where = ", ".join(map(str, folders))
    if not runs:
        raise ConfigError(f"{where}: no run found; a run folder holds {CONFIG} and {RESULTS}, {OUTCOME} or {METRICS}")
    if not any(run.config for run in runs):
        raise ConfigError(f"{where}: of {len(runs)} runs found none can be read")
    return runs


def _find(top: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(top):
        # a sweep's run whose config cannot be resolved leaves nothing but its outcome
        if OUTCOME in files or (CONFIG in files and (RESULTS in files or METRICS in files)):
            below.clear()  # W&B and Hydra keep configs of their own inside a run
            yield Path(folder)


def _load(folder: Path, name: str) -> Run:
    content: dict[str, dict[str, Any] | None] = {}
    damaged = []
    for file in (OUTCOME, RESULTS):
        try:
            content[file] = read_json(folder / file)
        except ConfigError as error:
            say(str(error))
            content[file] = None
            damaged.append(file)
    outcome, results = content[OUTCOME] or {}, content[RESULTS]
    state = one_line(outcome.get("outcome") or "unfinished")
    reason = one_line(outcome.get("reason") or ("" if outcome else f"no {RESULTS}"))
    if results is not None:
        state, reason = FINISHED, ""
    elif damaged:
        state, reason = UNREADABLE, f"{' and '.join(damaged)} cannot be read"
    elif state == FINISHED:
        state, reason = UNREADABLE, f"{RESULTS} is missing, although {OUTCOME} says finished"
        say(f"{folder}: {reason}")
    if outcome and not (folder / CONFIG).exists():
        return Run(folder, name, state, reason)
    try:
        config = load_config(folder)
        _check(config)
    except ConfigError as error:
        say(f"{folder / CONFIG}: {first_line(error).removeprefix(f'{folder}: ')}")
        return Run(folder, name, UNREADABLE, f"{CONFIG} is not the config of a run, or not whole")
    return Run(folder, name, state, reason, config, results or {})


def _check(config: DictConfig) -> None:
    """Raise ConfigError where something is missing that grouping and ranking need."""
    fingerprint(config)
    wanted = {"task.name": str, "model.name": str, "task.monitor.metric": str, "task.monitor.mode": str, "seed": int}
    for key, kind in wanted.items():
        node = OmegaConf.select(config, key)
        if not isinstance(node, kind) or node == "":
            raise ConfigError(f"not the config of a run: {key}={one_line(node)}")
    if config.task.monitor.mode not in ("min", "max"):
        raise ConfigError(f"task.monitor.mode={one_line(config.task.monitor.mode)}: must be min or max")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed={config.seed}: must be a whole number of at least 0")


def curve(run: Run, metric: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Steps and values of a metric over the run, each (number of validations,); empty where there are none."""
    steps: list[int] = []
    values: list[float] = []
    try:
        steps, values = read_metrics(run.folder / METRICS).get(metric, (steps, values))
        return np.array(steps, np.int64), np.array(values, np.float64)
    except FileNotFoundError:
        pass
    except Exception as error:  # a csv can be wrong in many ways
        say(f"{run.folder / METRICS}: cannot be read ({first_line(error)}); the run has no curve")
    return np.empty(0, np.int64), np.empty(0)


def picture(run: Run) -> bytes | None:
    """The run's wave picture, a PNG."""
    try:
        content = (run.folder / WAVES).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{run.folder / WAVES}: cannot be read ({error.strerror})")
        return None
    if content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB`\x82"):
        return content
    say(f"{run.folder / WAVES}: not a whole picture; left out")
    return None


def one_line(text: Any) -> str:
    """Text from a file without line breaks and control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def say(problem: str) -> None:
    """Print what is wrong with a file, in one line on stderr."""
    print(f"warning: {one_line(problem)}", file=sys.stderr, flush=True)
