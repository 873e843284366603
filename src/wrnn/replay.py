"""Run a finished run again from what its folder says, and compare the two to the last bit."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wrnn import runs
from wrnn.config import first_line
from wrnn.errors import ConfigError, ReplayDiffers
from wrnn.files import read_json
from wrnn.schema import RootConfig
from wrnn.training import train

TIMES = ("seconds", "steps_per_second", "data_share")  # what no two runs have in common


def replay(folder: Path, data_dir: str | None = None) -> Path:
    """Train as a finished run did, in a new run folder, with as many threads, and compare.

    Lines say first what is not as it was then: versions, commit, hardware. The new run is neither entered into a ledger
    nor sent to W&B. A run that `trainer.max_time` ended is given the number of its steps instead. One that had ended in
    mid-epoch and was prolonged differs: it was validated there.

    Args:
        folder: a run folder with results.json.
        data_dir: where the data are now; None is where the run found them.

    Returns: the new run folder.

    Raises: ConfigError, before anything is trained, for a folder that holds no finished run, is damaged, or has a
        config that this version does not know; ReplayDiffers, exit code 6, with what differs; what `train` raises.
    """
    results, then = _finished(folder)
    cfg = _config(folder, results, then)
    for name in (runs.BEST, runs.LAST):
        _weights(folder / name)  # what is damaged is told now, not after hours
    if data_dir is not None:
        runs.move(cfg, "data_dir", data_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(then["hardware"]["threads"])
    try:
        for line in changes(then, runs.environment(cfg)):
            print(f"not as it was: {line}", flush=True)
        train(cfg)
    finally:
        torch.set_num_threads(threads)
    again = Path(cfg.paths.run_dir)
    found = differences(folder, again)
    if found:
        raise ReplayDiffers(f"{again} is not {folder}: {'; '.join(found)}")
    print(f"the same as {folder}, bit for bit: results, metrics, weights and pictures", flush=True)
    return again


def _finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of a run, and what is recorded of the start that ended it."""
    results = read_json(folder / runs.RESULTS)
    if results is None:
        raise ConfigError(f"run={folder}: no run that has ended; {runs.RESULTS} is missing")
    try:
        then = (read_json(folder / runs.ENVIRONMENT) or {})["starts"][-1]
        then["versions"], then["hardware"]["threads"], then["git"]
    except (LookupError, TypeError) as error:
        raise ConfigError(f"run={folder}: {runs.ENVIRONMENT} is missing or does not record a start") from error
    return results, then


def _config(folder: Path, results: dict[str, Any], then: dict[str, Any]) -> DictConfig:
    """The config of the run, to be trained in a folder of its own."""
    cfg = runs.load_config(folder)
    was = cfg.paths.run_dir
    cfg.paths.run_dir, cfg.paths.ledger_dir = None, None
    if cfg.ckpt_path == "last":
        cfg.ckpt_path = None
    again, _ = runs.choose(cfg)
    cfg.paths.run_dir = was
    runs.move(cfg, "run_dir", str(again))
    if cfg.trainer.get("max_time") is not None:
        cfg.trainer.max_time, cfg.trainer.max_steps = None, results["steps"]
    cfg.logger = {name: node for name, node in (cfg.logger or {}).items() if name != "wandb"}
    try:
        whole = OmegaConf.merge(OmegaConf.structured(RootConfig), cfg)
    except OmegaConfBaseException as error:
        commit = (then["git"] or {}).get("commit", "the commit that made it")
        raise ConfigError(
            f"run={folder}: {first_line(error)}; this version is not its own, check out {commit}"
        ) from error
    assert isinstance(whole, DictConfig)
    return whole


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two records of a start may make their results differ, a line each."""
    found = [
        f"{name} was {then[part].get(name)}, is {now[part].get(name)}"
        for part in ("versions", "hardware")
        for name in {**then[part], **now[part]}
        if then[part].get(name) != now[part].get(name)
    ]
    found += [
        f"{name} was {digest}, is {now['code'].get(name)}"
        for name, digest in then.get("code", {}).items()
        if now["code"].get(name) != digest
    ]
    before, after = then["git"] or {}, now["git"] or {}
    if before.get("commit") != after.get("commit"):
        found.append(f"commit was {before.get('commit')}, is {after.get('commit')}")
    found += [
        f"files differed from the commit {when}"
        for when, git in (("then", before), ("now", after))
        if git.get("changed")
    ]
    return found


def differences(folder: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, times aside: results, metrics, weights, pictures; bit by bit."""
    found = []
    ours, theirs = (read_json(at / runs.RESULTS) or {} for at in (folder, other))
    for key in {**ours, **theirs}:
        if key not in TIMES and ours.get(key) != theirs.get(key):
            found.append(f"{key} {ours.get(key)} and {theirs.get(key)}")
    for path in sorted({path.relative_to(at) for at in (folder, other) for path in at.glob("*.*") if path.is_file()}):
        if path.suffix not in (".csv", ".png", ".gif"):
            continue
        content, copy = ((at / path).read_bytes() if (at / path).exists() else b"" for at in (folder, other))
        if content != copy:
            lines = content.splitlines(), copy.splitlines()
            first = next((i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), min(map(len, lines)))
            found.append(f"{path} from line {first + 1} on" if path.suffix == ".csv" else str(path))
    for name in (runs.BEST, runs.LAST):
        weights, copies = (_weights(at / name) for at in (folder, other))
        if weights.keys() != copies.keys():
            found.append(f"{name} has other weights")
        elif apart := [key for key in weights if not torch.equal(weights[key], copies[key])]:
            most = max(float((weights[key].double() - copies[key].double()).abs().max()) for key in apart)
            found.append(f"{name} by up to {most:.1e} in {apart[0]}")
    return found


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(runs.read_checkpoint(path)["state_dict"]) if path.exists() else {}
