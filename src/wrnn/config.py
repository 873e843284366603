"""Checks of a composed config before anything is built, and what identifies a run."""

import difflib
import hashlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wrnn.errors import ConfigError

# Keys that say where and how a run is made, not what it computes.
_NOT_IDENTITY = (
    "paths", "callbacks", "logger", "ckpt_path", "run_name", "group", "recurrence", "store_every", "cuda_graphs",
    "pairing", "retry", "jobs_per_gpu",
)  # fmt: skip
_TRAINER_IDENTITY = ("precision", "gradient_clip_val", "accumulate_grad_batches", "limit_train_batches")
# What a run is given: it may be prolonged, but its results are those of this budget.
BUDGET = (
    "max_epochs", "max_steps", "max_time", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches",
    "limit_test_batches",
)  # fmt: skip
# Callbacks that watch; any other may change what a run does.
_WATCHERS = (
    "best",
    "resume_point",
    "stop_on_non_finite",
    "validate_at_end",
    "solved_step",
    "progress",
    "record",
    "figures",
    "record_states",
)


def check(cfg: DictConfig, groups: Collection[str] | None = None) -> None:
    """Resolve every value and hold the keys beside each `_target_` against what it accepts.

    Args:
        cfg: a root config.
        groups: whose targets to look at; None is all of them.

    Raises: ConfigError that names the key and the nearest legal one.
    """
    if cfg.preset not in cfg.model.presets:
        raise ConfigError(f"preset={cfg.preset}: must be one of {', '.join(cfg.model.presets)}")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    assert isinstance(plain, dict)
    for path, node in _targets({key: plain[key] for key in groups or plain}, ""):
        _check_target(path, node)


def _targets(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))


def _check_target(path: str, node: Mapping[str, Any]) -> None:
    try:
        target = get_object(node["_target_"])
        legal = inspect.signature(target).parameters
    except Exception as error:
        raise ConfigError(f"{path}._target_={node['_target_']}: {first_line(error)}") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in legal.values()):
        return
    for key in node:
        if not key.startswith("_") and key not in legal:
            near = difflib.get_close_matches(key, legal, n=1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise ConfigError(f"{path}.{key}: {node['_target_']} has no such key{hint}; it takes: {', '.join(legal)}")


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What determines the result of a run, its budget aside, as plain numbers and strings.

    Where a run reads, writes and logs, and which of several equal implementations it takes, are left out.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key in _NOT_IDENTITY:
        plain.pop(key, None)
    if plain.get("matmul_precision") == "highest":
        del plain["matmul_precision"]  # runs from before there was a choice stay what they were
    plain["trainer"] = {key: plain["trainer"].get(key) for key in _TRAINER_IDENTITY}
    if cfg.trainer.get("gradient_clip_algorithm") == "value":
        plain["trainer"]["gradient_clip_algorithm"] = "value"
    if not plain["model"].get("frozen"):
        plain["model"].pop("frozen", None)  # runs from before there was a choice stay what they were
    for how in ("recurrence", "store_every"):
        plain["model"].get("core", {}).pop(how, None)
    for key in ("presets", "paper_init", "paper_input_init"):
        plain["model"].pop(key, None)
    for key in ("presets", "max_epochs", "max_steps"):
        plain["task"].pop(key, None)
    return _without_roots(plain)


def fingerprint(cfg: DictConfig) -> str:
    """Eight hexadecimal digits of all that changes a result: the identity, the budget, and rules that end a run early.

    Raises: ConfigError where a value cannot be resolved, or it is no config of a run.
    """
    try:
        plain = {**identity(cfg), "budget": {key: cfg.trainer.get(key) for key in BUDGET}}
        callbacks = OmegaConf.to_container(cfg.callbacks or OmegaConf.create(), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"not the config of a run: {type(error).__name__} {first_line(error)}") from error
    assert isinstance(callbacks, dict)
    watchers = {key for key in _WATCHERS if not (callbacks.get(key) or {}).get("stop")}  # solved_step.stop is a rule
    rules = {str(key): rule for key, rule in callbacks.items() if key not in watchers and rule is not None}
    return digest({**plain, "rules": rules} if rules else plain)


def _without_roots(node: Any) -> Any:
    """Drop folders, so that a run moved to another machine stays the same run."""
    if isinstance(node, dict):
        return {str(key): _without_roots(value) for key, value in node.items() if key != "root"}
    return [_without_roots(value) for value in node] if isinstance(node, list) else node


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a run's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two identities, as `key: old, now new`."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{path}{key}.")
        elif before != after:
            found.append(f"{path}{key}: {before}, now {after}")
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
