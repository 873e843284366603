"""Checks of a composed config before anything is built, and what identifies a run."""

import contextlib
import copy
import difflib
import hashlib
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wrnn.errors import ConfigError
from wrnn.files import moved
from wrnn.hints import fits, in_words

# Keys that say where and how a run is made, not what it computes.
_NOT_IDENTITY = (
    "paths", "callbacks", "logger", "ckpt_path", "run_name", "group", "recurrence", "store_every", "cuda_graphs",
    "pairing", "retry", "jobs_per_gpu",
)  # fmt: skip
_TRAINER_IDENTITY = ("precision", "gradient_clip_val", "accumulate_grad_batches", "limit_train_batches")
# Other keys of conf/trainer/, which change no result or are looked at apart. Any key beyond them may.
_TRAINER_USUAL = (
    "_target_", "accelerator", "devices", "precision", "max_epochs", "max_steps", "max_time", "gradient_clip_val",
    "gradient_clip_algorithm", "accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval",
    "num_sanity_val_steps", "limit_train_batches", "limit_val_batches", "limit_test_batches", "log_every_n_steps",
    "deterministic", "enable_model_summary", "profiler",
)  # fmt: skip
# What a run is given: it may be prolonged, but its results are those of this budget.
BUDGET = (
    "max_epochs", "max_steps", "max_time", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches",
    "limit_test_batches",
)  # fmt: skip
BETTER = {
    **dict.fromkeys(("loss", "mse", "cross_entropy", "cross_entropy_over_50"), "min"),
    **dict.fromkeys(("accuracy", "sequence_accuracy", "steps_per_second"), "max"),
}
"""Which way the metrics of our objectives get better, by name without split."""
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


# What must be built from a node, and what may also be null.
_BUILT = (
    "model.core", "model.core.init", "model.core.input_init", "model.readout", "task.datamodule",
    "task.datamodule.train_set", "task.datamodule.test_set", "task.objective", "optimizer", "trainer", "init",
    "input_init",
)  # fmt: skip
_STARTS = ("init.weight", "input_init.weight", "model.paper_init", "model.paper_input_init")
_BUILT_OR_NULL = ("scheduler.scheduler", *_STARTS)
_LATER = (*_STARTS, "optimizer", "scheduler.scheduler", "task.datamodule.train_set", "task.datamodule.test_set")
_OWN = ("model.", "task.")  # cores, readouts, objectives and tasks look at their arguments themselves, and know ranges
_HYDRAS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_AT_LEAST = {
    "optimizer.lr": 0, "optimizer.weight_decay": 0, "trainer.gradient_clip_val": 0,
    "trainer.accumulate_grad_batches": 1, "trainer.log_every_n_steps": 1, "trainer.check_val_every_n_epoch": 1,
}  # fmt: skip
_ABOVE_ZERO = ("trainer.val_check_interval", "trainer.limit_train_batches")
# What Lightning's Trainer takes and a run does not: the only value there is, and why or what to use.
_TRAINER_FIXED: dict[str, tuple[Any, str]] = {
    "logger": (None, "use logger=, as logger=none"),
    "callbacks": (None, "use +callbacks.NAME={_target_: ...}"),
    "enable_progress_bar": (None, "use callbacks.progress=null"),
    "default_root_dir": (None, "use paths.run_dir"),
    "plugins": (None, "a run has its own"),
    "strategy": ("auto", "a run takes one device"),
    "num_nodes": (1, "a run takes one device"),
    "fast_dev_run": (False, "use debug=default"),
    "overfit_batches": (0, "batches are drawn anew in every pass"),
    "reload_dataloaders_every_n_epochs": (0, "batches are drawn anew in every pass"),
}
BIASES = ("zero", "pytorch")


def check(cfg: DictConfig, groups: Collection[str] | None = None) -> None:
    """Resolve every value and hold it against what its place accepts.

    A value beside a `_target_` must be one that the target takes, of the type that it is annotated with, and a number
    (not NaN); parts of a model and of a task see to that themselves when they are built.

    Args:
        cfg: a root config.
        groups: which to look at; None is all of them.

    Raises: ConfigError that names the key, the value, and what is legal or the nearest legal key.
    """
    if cfg.preset not in cfg.model.presets:
        raise ConfigError(f"preset={cfg.preset}: must be one of {', '.join(cfg.model.presets)}")
    _check_names(cfg, "")
    plain = _resolved(cfg)
    plain = {key: plain[key] for key in groups or plain if key in plain}
    for path, value in _leaves(plain, ""):
        looked_at = path.startswith(_OWN) and ".presets." not in path  # by what is built from it
        if isinstance(value, float) and math.isnan(value) and not looked_at:
            raise ConfigError(f"{path}=nan: must be a number")
        if path in _AT_LEAST and isinstance(value, int | float) and value < _AT_LEAST[path]:
            raise ConfigError(f"{path}={value}: must be a number of at least {_AT_LEAST[path]}")
        if path.startswith("model.presets.") and value not in BIASES:
            raise ConfigError(f"{path}={value}: must be one of {', '.join(BIASES)}")
        if path in _ABOVE_ZERO and isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"{path}={value}: must be a number above 0")
    _check_presets(plain)
    for path in ("model.name", "task.name"):
        name = _at(plain, path)
        if name is not None and not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise ConfigError(f"{path}={name!r}: must be a name of letters, digits, _, - and .")
    for path in (
        _BUILT
        + _BUILT_OR_NULL
        + tuple(f"{group}.{key}" for group in ("callbacks", "logger") for key in plain.get(group) or {})
    ):
        _check_built(plain, path, or_null=path not in _BUILT)
    for path, node in _targets(plain, ""):
        _check_target(path, node)
    if groups is None:
        _check_trainer(plain)
        _check_budget(plain)


def _check_trainer(plain: dict[str, Any]) -> None:
    """What a value's type does not tell, and what goes together."""
    trainer = plain["trainer"]
    for key, (only, why) in _TRAINER_FIXED.items():
        if trainer.get(key, only) not in (None, only):
            legal = "must be left out" if only is None else f"must be {only}"
            raise ConfigError(f"trainer.{key}={trainer[key]}: {legal}; {why}")
    limit = trainer.get("max_time")
    if limit is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(limit)):
        raise ConfigError(f"trainer.max_time={limit}: must be days:hours:minutes:seconds, as 00:01:30:00, or null")
    if isinstance(trainer.get("val_check_interval"), Mapping):
        raise ConfigError(f"trainer.val_check_interval={trainer['val_check_interval']}: must be a number or a time")
    schedule, every = plain["scheduler"], trainer.get("check_val_every_n_epoch")
    never = trainer.get("limit_val_batches") == 0
    if str(schedule["monitor"]).startswith("val/"):
        if schedule["interval"] != "epoch" or every is None or schedule["frequency"] % every or never:
            raise ConfigError(
                f"scheduler.monitor={schedule['monitor']}: is there after validations alone; must have"
                " scheduler.interval=epoch, trainer.limit_val_batches above 0 and a scheduler.frequency that is a"
                f" multiple of trainer.check_val_every_n_epoch={every}"
            )
    for name, watcher in (plain.get("callbacks") or {}).items():
        acts = isinstance(watcher, Mapping) and (watcher.get("stop") or "deadlines" in watcher)
        if never and acts and str(watcher.get("metric")).startswith("val/"):
            raise ConfigError(
                f"callbacks.{name}.metric={watcher['metric']}: is never there with trainer.limit_val_batches=0"
            )


def _check_budget(plain: dict[str, Any]) -> None:
    """A run must end: a task of one's own may have forgotten to say when."""
    limits = [_at(plain, f"trainer.{key}") for key in ("max_epochs", "max_steps", "max_time")]
    if all(limit in (None, -1) for limit in limits) and not _at(plain, "callbacks.solved_step.stop"):
        raise ConfigError(
            f"no budget: set max_epochs or max_steps in conf/task/{_at(plain, 'task.name')}.yaml,"
            " or trainer.max_epochs, trainer.max_steps or trainer.max_time"
        )


def _check_names(node: DictConfig, path: str) -> None:
    """Where the schema names all keys, there must be no others: Hydra adds them on request."""
    kind = OmegaConf.get_type(node)
    legal = [field.name for field in fields(kind)] if kind is not None and is_dataclass(kind) else None
    for key in map(str, node):
        if legal is not None and key not in legal:
            raise ConfigError(f"{path}{key}: no such key{nearest(key, legal)}; there are: {', '.join(legal)}")
        child = None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]
        if isinstance(child, DictConfig):
            _check_names(child, f"{path}{key}.")


def nearest(word: str, legal: Iterable[str], path: str = "") -> str:
    """`; did you mean ...`, with the path to it, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(legal), n=1)
    return f"; did you mean {path}{near[0]}" if near else ""


def key_to_set(cfg: DictConfig, key: str) -> str:
    """The key on the command line for this one: `init.bias` for `model.core.init.bias`, where the start is `${init}`.

    Args:
        cfg: a config that is not resolved.
        key: dotted; one that does not exist is its own.
    """
    node: Any = cfg
    names = key.split(".")
    for depth, name in enumerate(names[:-1]):
        if not isinstance(node, DictConfig) or name not in node:
            break
        if OmegaConf.is_interpolation(node, name):
            written = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))[name]
            source = re.fullmatch(r"\$\{([\w.]+)\}", written)
            return key_to_set(cfg, ".".join([source[1], *names[depth + 1 :]])) if source else key
        node = node[name]
    return key


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """All values as plain numbers, text, lists and mappings; where no folder is chosen yet, with one in its place."""
    if OmegaConf.select(cfg, "paths.run_dir", default="") is None:
        cfg = copy.deepcopy(cfg)
        cfg.paths.run_dir = "run"
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_culprit(cfg, "") or first_line(error)) from error
    return cast(dict[str, Any], plain)


def _culprit(node: Any, path: str) -> str:
    """The first key whose value cannot be resolved, with the value as it is written and why."""
    keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        below = f"{path}.{key}" if path else str(key)
        try:
            child = node[key]
        except OmegaConfBaseException as error:
            return f"{below}={node._get_node(key)._value()}: {first_line(error)}"
        if isinstance(child, DictConfig | ListConfig) and (found := _culprit(child, below)):
            return found
    return ""


def _at(plain: Mapping[str, Any], path: str) -> Any:
    node: Any = plain
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _check_built(plain: Mapping[str, Any], path: str, or_null: bool) -> None:
    above, _, key = path.rpartition(".")
    holder = _at(plain, above) if above else plain
    if above and path in _BUILT and holder is None and above.split(".")[0] in plain:
        raise ConfigError(f"{above}=null: must have {key}")
    if not isinstance(holder, Mapping) or key not in holder:
        return
    value = holder[key]
    if not (isinstance(value, Mapping) and "_target_" in value) and not (or_null and value is None):
        raise ConfigError(f"{path}={value}: must be what is built from a _target_{' or null' if or_null else ''}")
    if isinstance(value, Mapping) and path in _LATER and value.get("_partial_") is not True:
        raise ConfigError(f"{path}._partial_={value.get('_partial_', False)}: must be true")


def _check_presets(plain: Mapping[str, Any]) -> None:
    """The presets of a task differ in their values alone."""
    presets = _at(plain, "task.presets")
    if presets is None:
        return
    if not isinstance(presets, Mapping) or not all(isinstance(preset, Mapping) for preset in presets.values()):
        raise ConfigError(f"task.presets={presets}: must be mappings by preset")
    legal = Counter(key for preset in presets.values() for key in preset)
    for key, times in legal.items():
        if times < len(presets):
            has = [name for name, preset in presets.items() if key in preset]
            common = [other for other in legal if legal[other] == len(presets)]
            raise ConfigError(f"task.presets.{has[0]}.{key}: not every preset has it{nearest(key, common)}")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, bool | int | float | str | None]]:
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


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
    for key, value in node.items():
        if key.startswith("_") and key not in _HYDRAS:
            raise ConfigError(f"{path}.{key}: no such key{nearest(key, _HYDRAS)}; there are: {', '.join(_HYDRAS)}")
        if key in ("_partial_", "_recursive_") and not isinstance(value, bool):
            raise ConfigError(f"{path}.{key}={value}: must be true or false")
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in legal.values()):
        for key in node:
            if not key.startswith("_") and key not in legal:
                advice = f"{nearest(key, legal)}; it takes: {', '.join(legal)}"
                raise ConfigError(f"{path}.{key}: {node['_target_']} has no such key{advice}")
    with contextlib.suppress(NameError):  # an annotation that only a type checker can read
        legal = inspect.signature(target, eval_str=True).parameters
    for key, value in node.items():
        hint: Any = legal[key].annotation if key in legal else Any
        if path.startswith(_OWN) and hint is not bool:
            continue
        built = isinstance(value, Mapping) and "_target_" in value
        absent = value is None and key in legal and legal[key].default is None
        if not built and not absent and not fits(value, hint):
            raise ConfigError(f"{path}.{key}={value!r}: must be {in_words(hint)}")


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
    unusual = {key: value for key, value in plain["trainer"].items() if key not in _TRAINER_USUAL}
    plain["trainer"] = {key: plain["trainer"].get(key) for key in _TRAINER_IDENTITY} | unusual
    clip = plain["trainer"]["gradient_clip_val"]
    if isinstance(clip, int | float) and float(clip).is_integer():  # 0 is none, and 1.0 is 1
        plain["trainer"]["gradient_clip_val"] = int(clip) or None
    if cfg.trainer.get("gradient_clip_algorithm") == "value":
        plain["trainer"]["gradient_clip_algorithm"] = "value"
    if not plain["model"].get("frozen"):
        plain["model"].pop("frozen", None)  # runs from before there was a choice stay what they were
    for how in ("recurrence", "store_every"):
        plain["model"].get("core", {}).pop(how, None)
    for key in ("presets", "paper_init", "paper_input_init", "paper_input_bias"):
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
        rules = unusual_callbacks(cfg)
        rules |= {name: node for name, node in _callbacks(cfg).items() if node is not None and node.get("stop")}
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"not the config of a run: {type(error).__name__} {first_line(error)}") from error
    rules = moved(rules, str(cfg.paths.get("run_dir")), "None")  # as it is before the folder is chosen
    return digest({**plain, "rules": rules} if rules else plain)


def unusual_callbacks(cfg: DictConfig) -> dict[str, Any]:
    """Callbacks that may give a run's results another meaning, by name.

    Those that do more than watch; and of those that select, or say when a task is solved, what they watch in place of
    the task's monitor, or `null` where there is none.
    """
    monitor = cfg.task.monitor
    watched = {
        "best": {"monitor": monitor.metric, "mode": monitor.mode},
        "solved_step": {
            "metric": monitor.get("solved_metric"), "threshold": monitor.get("solved_threshold"), "mode": monitor.mode,
        },
        "validate_at_end": {},
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, node in _callbacks(cfg).items():
        if name in watched:
            usual = watched[name]
            other = {key: node[key] for key in usual if node.get(key, usual[key]) != usual[key]} if node else "null"
            found |= {name: other} if other else {}
        elif name not in _WATCHERS and node is not None:
            found[name] = node
    return found


def _callbacks(cfg: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(cfg.callbacks or OmegaConf.create(), resolve=True)
    assert isinstance(found, dict)
    return {str(name): node for name, node in found.items()}


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
