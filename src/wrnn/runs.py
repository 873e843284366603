"""Run folders: where a run writes, how a stopped one is found again, and what is recorded about it.

A run folder holds config.yaml (resolved), environment.json (versions, commit, hardware, seeds of every start),
metrics.csv, results.json once the run has ended, checkpoints/{best,last}.ckpt, learning_curve.png and
state_over_time.png.
"""

import hashlib
import importlib.util
import os
import pickle
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

import wrnn
from wrnn.config import BUDGET, differences, first_line, identity
from wrnn.errors import ConfigError
from wrnn.files import folder_lock, moved, read_json, sweep_aside, write_atomically, write_json, writing
from wrnn.schema import PathsConfig

CONFIG, RESULTS, ENVIRONMENT = "config.yaml", "results.json", "environment.json"
PREVIOUS = "results.previous.json"  # of a shorter budget, where a run is prolonged
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
PACKAGES = ("torch", "lightning", "torchmetrics", "torchvision", "hydra-core", "omegaconf", "numpy")


def choose(cfg: DictConfig) -> tuple[Path, Path | None]:
    """The folder of this run and the checkpoint to start from, if any. Nothing is written.

    `ckpt_path=last` takes the newest stopped run with these settings (the budget may differ), or the folder named by
    `paths.run_dir`. A run killed before its first checkpoint starts again, in the same folder.
    Raises: ConfigError where there is no such run, or the checkpoint is of other settings or unreadable.
    """
    named = Path(cfg.paths.run_dir) if cfg.paths.run_dir else None
    if cfg.ckpt_path == "last":
        folder = named or _newest(cfg)
        if (folder / CONFIG).exists():
            _compare(load_config(folder), cfg, folder)
        return folder, (checked(folder / LAST, cfg) if (folder / LAST).exists() else None)
    folder = named or Path(cfg.paths.runs_dir) / cfg.run_name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    if (folder / CONFIG).exists():
        raise ConfigError(f"paths.run_dir={folder}: holds a run; use ckpt_path=last, or another folder")
    return folder, (checked(Path(cfg.ckpt_path), cfg) if cfg.ckpt_path else None)


def _newest(cfg: DictConfig) -> Path:
    where = Path(cfg.paths.runs_dir) / cfg.run_name
    folders = sorted((path.parent for path in where.glob(f"*/{CONFIG}")), reverse=True)
    same = [folder for folder in folders if not differences(identity(load_config(folder)), identity(cfg))]
    if not same:
        reason = f"; the newest differs in {_some(load_config(folders[0]), cfg)}" if folders else ""
        raise ConfigError(f"ckpt_path=last: no run with these settings in {where}{reason}")
    return next((folder for folder in same if not (folder / RESULTS).exists()), same[0])


def _some(old: DictConfig, new: DictConfig) -> str:
    found = differences(identity(old), identity(new))
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _compare(old: DictConfig, new: DictConfig, what: Path) -> None:
    if differences(identity(old), identity(new)):
        raise ConfigError(f"ckpt_path: {what} was made with other settings: {_some(old, new)}")


def checked(path: Path, cfg: DictConfig) -> Path:
    """The checkpoint, if it can be read and is of the same model, task and optimizer. Raises: ConfigError.

    Lightning restores rates and decays with the rest, whatever the config says now.
    """
    expected = identity(cfg)
    found = read_checkpoint(path).get("identity", {})
    for part in ("model", "task", "optimizer", "scheduler"):
        wrong = differences(found.get(part, {}), expected[part], f"{part}.")
        if wrong:
            raise ConfigError(f"ckpt_path={path}: is of another {part}: {'; '.join(wrong[:3])}")
    return path


def read_checkpoint(path: Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint to the CPU, running nothing that is in it. `key`: what asked for it, for the errors.

    Raises: ConfigError where there is none, it is not whole, or holds more than numbers and text.
    """
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file")
    import torch  # late: a sweep's controller reads run folders, and starts faster without it

    try:
        with zipfile.ZipFile(path) as archive:  # torch looks at no checksum: a wrong byte would be a wrong weight
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} does not have its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{key}={path}: holds more than numbers and text; nothing in it was run") from error
    except Exception as error:
        raise ConfigError(f"{key}={path}: not a whole checkpoint ({first_line(error)})") from error


def load_config(folder: Path) -> DictConfig:
    """The resolved config of a run folder. Raises: ConfigError where there is none, or only a part."""
    try:
        cfg = OmegaConf.load(folder / CONFIG)
    except Exception as error:
        raise ConfigError(f"{folder}: not a run folder, {CONFIG} is missing or unreadable") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{folder}: not a run folder, {CONFIG} holds no mapping")
    if missing := {field.name for field in fields(PathsConfig)} - set(cfg.get("paths") or {}):  # the last of its keys
        raise ConfigError(f"{folder}: {CONFIG} is cut off, or of another version; paths.{min(missing)} is missing")
    return cfg


def _budget(cfg: DictConfig) -> dict[str, Any]:
    return {key: cfg.trainer.get(key) for key in BUDGET}


def start(folder: Path, cfg: DictConfig) -> None:
    """Make the folder, write the config, add this start to the record. Raises: ConfigError where that is impossible."""
    with writing(f"paths.run_dir={folder}"):
        if (folder / RESULTS).exists() and _budget(load_config(folder)) != _budget(cfg):
            (folder / RESULTS).rename(folder / PREVIOUS)  # they are of another budget than the config says now
        write_atomically(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
        record = folder / ENVIRONMENT
        starts = (read_json(record) or {"starts": []})["starts"]
        write_json(record, {"starts": [*starts, environment(cfg)]})


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder. Raises: ConfigError where one is in it, or it cannot be made."""
    try:
        lock = folder_lock(folder)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"paths.run_dir={folder}: another process is training in it; wait, or stop it") from error
    except OSError as error:
        raise ConfigError(f"paths.run_dir={folder}: cannot be written to ({error.strerror})") from error
    try:
        sweep_aside(folder)
        yield
    finally:
        lock.release()


def move(cfg: DictConfig, key: str, new: str) -> None:
    """Give a folder of `paths` another place in a resolved config, where it is spelled out in many values."""
    old = str(cfg.paths[key])
    for group in ("task", "images", "callbacks", "logger"):
        if cfg.get(group) is not None:
            cfg[group] = moved(OmegaConf.to_container(cfg[group]), old, new)
    cfg.paths[key] = new


def environment(cfg: DictConfig) -> dict[str, Any]:
    """What a later reader needs in order to judge or repeat this start: command, versions, commit, hardware, seeds."""
    import torch

    datamodule = OmegaConf.to_container(cfg.task.datamodule, resolve=True)
    assert isinstance(datamodule, dict)
    uses_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {
            "wrnn": wrnn.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "git": git_state(),
        "code": code_state(cfg),
        "hardware": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if uses_gpu else None,
        },
        "seeds": {"seed": cfg.seed, **{key: value for key, value in datamodule.items() if str(key).endswith("_seed")}},
        "process": os.getpid(),
        "host": platform.node(),
    }


def code_state(cfg: DictConfig) -> dict[str, str]:
    """The modules that define core, readout, task and objective, bases of their own included, with their digests."""
    kinds = [
        get_object(OmegaConf.select(cfg, f"{path}._target_"))
        for path in ("model.core", "model.readout", "task.datamodule", "task.objective")
    ]
    own = {__package__, *(kind.__module__.split(".")[0] for kind in kinds)}
    modules = {base.__module__ for kind in kinds for base in getattr(kind, "__mro__", (kind,))}
    mine = sorted(name for name in modules if name.split(".")[0] in own and name.split(".")[0] not in PACKAGES)
    return {name: digest for name in mine if (digest := _digest(name)) is not None}


def _digest(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
        return hashlib.sha256(Path(str(found and found.origin)).read_bytes()).hexdigest()[:12]
    except (ImportError, OSError, ValueError):
        return None


def changed_code(folder: Path) -> list[str]:
    """The modules of a run's core, readout, task and objective that are not what they were when it started."""
    return [name for name, digest in recorded_code(folder).items() if _digest(name) != digest]


def recorded_code(folder: Path) -> dict[str, str]:
    """The digests that the last start of a run has recorded; none where it has not."""
    return dict(_last_start(folder).get("code") or {})


def begun(folder: Path) -> str:
    """When the last start of a run was, in a form that sorts; empty where it has not recorded that."""
    return str(_last_start(folder).get("date") or "")


def _last_start(folder: Path) -> dict[str, Any]:
    with suppress(ConfigError, LookupError, TypeError, ValueError):
        return dict((read_json(folder / ENVIRONMENT) or {})["starts"][-1])
    return {}


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree and whether its code or configs differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    sources = str(here.parent), str(here.parents[1] / "conf")  # with what git does not know yet: it is in no commit

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", *sources))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
