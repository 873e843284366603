"""Build the parts of a run from its config, train them, test them, load them again.

The only place that instantiates what the config of a run names.
"""

import errno
import inspect
import logging
import math
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from torch import nn

from wrnn import runs, wandb_logger
from wrnn.allocator import keep_freed_memory
from wrnn.callbacks.progress import RunRecord
from wrnn.callbacks.saving import SolvedStep, WholeFileIO
from wrnn.callbacks.stopping import GiveUp
from wrnn.checks import one_of, seed
from wrnn.config import BETTER, check, digest, first_line, identity
from wrnn.cores.base import Core
from wrnn.errors import ConfigError, Interrupted, OutOfMemory
from wrnn.features import fixed_features
from wrnn.files import read_json, write_json
from wrnn.module import Schedule, SequenceModule
from wrnn.objectives import Objective
from wrnn.paper import ledger
from wrnn.precision import PRECISIONS, float32_products, without_denormals
from wrnn.recurrence.notices import say_once
from wrnn.tasks.base import Task

Kind = TypeVar("Kind", bound=Callback)


@dataclass(frozen=True)
class Parts:
    """What a config builds: the task, the model in its module, and the parts of the model."""

    task: Task
    core: Core
    readout: nn.Module
    objective: Objective
    module: SequenceModule


@dataclass(frozen=True)
class LoadedRun:
    """A finished run: its parts with the weights of a checkpoint, its config, its final metrics if it has ended."""

    task: Task
    core: Core
    readout: nn.Module
    module: SequenceModule
    config: DictConfig
    results: dict[str, Any] | None


def build(cfg: DictConfig) -> Parts:
    """Seed and build task, core, readout, objective and module. No data are read, nothing is written.

    Raises: ConfigError naming the part and what it says is wrong.
    """
    check(cfg, ("model", "task", "optimizer", "scheduler"))  # no more, so that runs outlive renamed callbacks
    _check_starts(cfg)
    precision = cfg.get("matmul_precision", "highest")
    if precision not in PRECISIONS:
        raise ConfigError(f"matmul_precision={precision}: must be one of {', '.join(PRECISIONS)}")
    _guarded(partial(seed, "seed", cfg.seed))
    torch.manual_seed(cfg.seed)
    task: Task = _make("task.datamodule", cfg.task.datamodule)
    core: Core = _make("model.core", cfg.model.core, **_facts(cfg.model.core._target_, task))
    _guarded(partial(_freeze, core, cfg.model.get("frozen", False)))
    recurrence = cfg.get("recurrence", "auto")
    if recurrence != "auto" and "recurrence" not in cfg.model.core:
        say_once(f"recurrence={recurrence}: model={cfg.model.name} takes none; ignored")
    readout: nn.Module = _make(
        "model.readout", cfg.model.readout, input_size=core.output_size, output_size=task.output_size
    )
    objective: Objective = _make("task.objective", cfg.task.objective, output_size=task.output_size)
    _check_metrics(cfg, objective)
    optimizer = _make("optimizer", cfg.optimizer)
    schedule = Schedule(
        scheduler=_make("scheduler.scheduler", cfg.scheduler.scheduler) if cfg.scheduler.scheduler else None,
        interval=cfg.scheduler.interval,
        frequency=cfg.scheduler.frequency,
        monitor=cfg.scheduler.monitor,
    )
    module = SequenceModule(core, readout, objective, optimizer, schedule, seed=cfg.seed, identity=identity(cfg))
    return Parts(task, core, readout, objective, module)


FROZEN = {"false": (False, False), "true": (True, True), "recurrence": (False, True), "input": (True, False)}
"""What `model.frozen` may be, and whether that stops the input map and the recurrence from learning."""


def _freeze(core: Core, frozen: bool | str) -> None:
    stop_input, stop_recurrence = FROZEN[one_of("model.frozen", str(frozen).lower(), FROZEN)]
    inputs = set(core.input_parameters())
    meant = inputs if stop_input else set(core.parameters()) - inputs
    if stop_input != stop_recurrence and not meant:
        raise ConfigError(f"model.frozen={frozen}: this core has no such weights")
    for weight in core.parameters():
        if stop_input if weight in inputs else stop_recurrence:
            weight.requires_grad_(False)


def _check_metrics(cfg: DictConfig, objective: Objective) -> None:
    """A metric that is watched must be one that is logged."""
    logged = [f"{split}/{name}" for split in ("val", "train") for name in (*objective.metrics(), "loss")]
    watched = {key: cfg.task.monitor.get(key) for key in ("metric", "solved_metric")} | {"": cfg.scheduler.monitor}
    for key, metric in watched.items():
        if metric is not None:
            _guarded(partial(one_of, f"task.monitor.{key}" if key else "scheduler.monitor", metric, logged))
    _guarded(partial(one_of, "task.monitor.select", cfg.task.monitor.select, ("best", "last")))


def _check_modes(cfg: DictConfig) -> None:
    """Whatever watches a metric must know which way it gets better."""
    for node, metric, mode in (
        ("task.monitor", "metric", "mode"),
        ("callbacks.solved_step", "metric", "mode"),
        ("callbacks.give_up", "metric", "mode"),
        ("scheduler", "monitor", "scheduler.mode"),
    ):
        watched, asked = (OmegaConf.select(cfg, f"{node}.{key}") for key in (metric, mode))
        right = BETTER.get(str(watched).rpartition("/")[2])
        if right is not None and asked not in (None, right):
            raise ConfigError(f"{node}.{mode}={asked}: must be {right} for {watched}")


def _facts(target: str, task: Task) -> dict[str, int]:
    """What a core is told of its task: the input size, and the length of the sequences if its constructor asks."""
    facts = {"input_size": task.input_size, "sequence_length": task.sequence_length}
    return {key: fact for key, fact in facts.items() if key in inspect.signature(get_object(target)).parameters}


def _make(key: str, node: DictConfig, **facts: Any) -> Any:
    try:
        return instantiate(node, _convert_="all", **facts)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if _is_out_of_memory(cause):
            raise OutOfMemory(f"out of memory: {key}: {first_line(cause)}") from error
        message = first_line(cause)
        raise ConfigError(message if re.match(r"\w+(\.\w+)*=", message) else f"{key}: {message}") from error


def _check_starts(cfg: DictConfig) -> None:
    """A core with a start of its own does not read `init`; then no other start may be asked for."""
    raw = OmegaConf.to_container(cfg.model.core, resolve=False)
    assert isinstance(raw, dict)
    for group in ("init", "input_init"):
        paper = OmegaConf.to_container(cfg.model[f"paper_{group}"] or OmegaConf.create(), resolve=True) or None
        asked = OmegaConf.to_container(cfg[group], resolve=True)
        assert isinstance(asked, dict)
        if group not in raw and asked["weight"] != paper:
            raise ConfigError(f"{group}: model={cfg.model.name} has its own start only; use {group}=paper")


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, then test on the selected checkpoint; everything is left in the run folder. Returns the final metrics.

    Raises: ConfigError, DivergedError, OutOfMemory, Interrupted; see `wrnn.errors`.
    """
    check(cfg)
    _check_modes(cfg)
    parts = build(cfg)
    parts.module.configure_optimizers()  # once before anything is written, so that bad settings leave nothing behind
    folder, checkpoint = runs.choose(cfg)
    with open_dict(cfg):
        cfg.paths.run_dir = str(folder)
    _quieten_libraries()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    _guarded(parts.task.prepare_data)
    callbacks = [_make(f"callbacks.{name}", node) for name, node in (cfg.callbacks or {}).items() if node is not None]
    if cfg.trainer.max_time is None:
        callbacks.append(Timer())
    loggers = [_make(f"logger.{name}", node) for name, node in (cfg.logger or {}).items() if node is not None]
    trainer: L.Trainer = _make(
        "trainer",
        cfg.trainer,
        callbacks=callbacks,
        plugins=[WholeFileIO()],
        logger=loggers or False,
        default_root_dir=str(folder),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    if trainer.world_size > 1:
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices}: a run takes one device, since tasks do not split their batches;"
            " use trainer.devices=1, and a sweep for more of them"
        )
    device = trainer.strategy.root_device
    if cfg.trainer.precision in ("16-mixed", "16", 16) and device.type == "cpu":
        raise ConfigError(f"trainer.precision={cfg.trainer.precision}: needs a GPU; a CPU has bf16-mixed")
    if cfg.cuda_graphs:
        _check_replays(cfg, parts.core, device)
    _guarded(partial(parts.core.check_device, device))
    parts.module.cuda_graphs = cfg.cuda_graphs
    parts.module.features = fixed_features(parts.core, parts.task, parts.objective)
    with runs.held(folder):
        runs.start(folder, cfg)
        return _run(cfg, parts, trainer, folder, checkpoint)


def _check_replays(cfg: DictConfig, core: Core, device: torch.device) -> None:
    """Refuse CUDA graphs where a replay would not be the step that it stands for."""
    if not (core.is_deterministic and core.can_be_recorded):  # or the steps before a recording would be drawn, counted
        why = "waits for the GPU within a step" if core.is_deterministic else "draws numbers or counts statistics"
        raise ConfigError(f"cuda_graphs=true: a core that {why} cannot be recorded, as model={cfg.model.name}")
    if device.type != "cuda":
        raise ConfigError(f"cuda_graphs=true: needs one CUDA GPU, not {device.type}")
    if cfg.trainer.accumulate_grad_batches > 1:  # a replay would write over the sum so far
        raise ConfigError(
            f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches}: must be 1 with cuda_graphs=true"
        )


def _run(cfg: DictConfig, parts: Parts, trainer: L.Trainer, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Train and test in a folder that is ours, and end the loggers."""
    loggers = trainer.loggers
    for logger in loggers:
        logger.log_hyperparams(wandb_logger.facts(cfg))
    going_on = f", going on from {checkpoint}" if checkpoint else ""
    print(f"{cfg.run_name}: {_sizes(parts)}; run folder {folder}{going_on}", flush=True)
    keep_freed_memory()
    try:
        with _known_failures(folder), float32_products(cfg.matmul_precision), without_denormals():
            trainer.fit(parts.module, datamodule=parts.task, ckpt_path=checkpoint, weights_only=True)
            results = _finish(cfg, parts, trainer, folder)
    except BaseException:
        wandb_logger.close(loggers, exit_code=1)
        raise
    wandb_logger.close(loggers, exit_code=0, results=results)
    return results


def _finish(cfg: DictConfig, parts: Parts, trainer: L.Trainer, folder: Path) -> dict[str, Any]:
    """Test the selected weights, write results.json, print the table."""
    best, record = _callback(trainer, ModelCheckpoint), _callback(trainer, RunRecord)
    timer, solved = _callback(trainer, Timer), _callback(trainer, SolvedStep)
    selected = folder / runs.BEST
    results: dict[str, Any] = {"run_name": cfg.run_name, "identity": digest(identity(cfg))}
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    results |= {"steps": trainer.global_step, "epochs": round(trainer.global_step / steps_per_epoch, 4)}
    if cfg.task.monitor.select == "best" and best and best.best_model_score is not None and selected.exists():
        parts.module.load_state_dict(runs.read_checkpoint(selected)["state_dict"])
        results[f"best_{cfg.task.monitor.metric}"] = float(best.best_model_score)
        results["tested"] = runs.BEST
    else:
        results["tested"] = runs.LAST
    results |= record.validation if record else {}
    for test in trainer.test(parts.module, datamodule=parts.task, verbose=False):  # none with limit_test_batches=0
        results |= {key: float(value) for key, value in test.items()}
    results |= parameter_counts(parts)
    if timer:
        results["seconds"] = round(timer.time_elapsed("train"), 3)
    if solved and solved.threshold is not None:
        results["solved_step"] = solved.step
    given_up = _callback(trainer, GiveUp)
    if given_up and given_up.reason:
        results["gave_up"] = given_up.reason
    if record and record.steps:
        results["steps_per_second"] = record.steps / record.seconds
        results["data_share"] = record.data_seconds / record.seconds
    write_json(folder / runs.RESULTS, results)
    if cfg.paths.get("ledger_dir"):
        _enter(folder, Path(cfg.paths.ledger_dir))
    print_table(cfg.run_name, results)
    print(f"run folder {folder}", flush=True)
    return results


def _enter(folder: Path, ledger_dir: Path) -> None:
    """Add the run to the ledger; what prevents it must not cost the run."""
    try:
        ledger.append(ledger_dir, ledger.record(folder))
    except ConfigError as error:
        print(f"warning: {error}; later: python src/paper.py add {folder} --ledger {ledger_dir}", flush=True)


def _callback(trainer: L.Trainer, kind: type[Kind]) -> Kind | None:
    """The run's callback of that kind, if the config has one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def evaluate(
    folder: Path, checkpoint: str | None = None, data_dir: str | None = None, accelerator: str = "auto"
) -> dict[str, float]:
    """Test a run's checkpoint on the run's own task; returns and prints the test metrics, writes nothing.

    Args:
        folder: a run folder.
        checkpoint: `best` or `last`; None is the one that the run tested.
        data_dir: where the data are now; None is where the run found them.
        accelerator: as Lightning's.

    Raises: ConfigError for a folder or a checkpoint that cannot be read.
    """
    run = load_run(folder, checkpoint, data_dir)
    if modules := runs.changed_code(folder):
        print(f"not as it was: {', '.join(modules)}", flush=True)
    _quieten_libraries()
    try:
        trainer = L.Trainer(
            accelerator=accelerator, devices=1, precision=run.config.trainer.precision, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=str(folder),
        )  # fmt: skip
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"accelerator={accelerator}: {first_line(error)}") from error
    _guarded(partial(run.core.check_device, trainer.strategy.root_device))
    _guarded(run.task.prepare_data)
    with float32_products(run.config.get("matmul_precision", "highest")), without_denormals():
        metrics = {key: float(value) for key, value in trainer.test(run.module, run.task, verbose=False)[0].items()}
    print_table(f"{run.config.run_name}, {folder}", metrics)
    return metrics


def load_run(folder: str | Path, checkpoint: str | None = None, data_dir: str | None = None) -> LoadedRun:
    """Core, readout, task and config of a run, with trained weights, ready for a notebook.

    Args:
        folder: a run folder.
        checkpoint: `best` or `last`; None is the one that the run tested, or `last` for a stopped run.
        data_dir: where the data are now; None is where the run found them.

    Raises: ConfigError for a folder or a checkpoint that cannot be read, or that the code as it is now does not fit.
    """
    folder = Path(folder)
    cfg = runs.load_config(folder)
    results = read_json(folder / runs.RESULTS)
    if checkpoint not in (None, "best", "last"):
        raise ConfigError(f"checkpoint={checkpoint}: must be best or last")
    tested = results["tested"] if results else runs.LAST
    path = folder / {"best": runs.BEST, "last": runs.LAST, None: tested}[checkpoint]
    if data_dir is not None:
        runs.move(cfg, "data_dir", data_dir)
    with torch.random.fork_rng(devices=[]):
        parts = build(cfg)
    try:
        parts.module.load_state_dict(runs.read_checkpoint(path, "checkpoint")["state_dict"])
    except RuntimeError as error:
        details = " ".join(str(error).split("\n\t")[1:2]).strip()
        raise ConfigError(
            f"{path}: its weights are not those of model={cfg.model.name} as it is now. {details}"
        ) from error
    parts.module.eval()
    return LoadedRun(parts.task, parts.core, parts.readout, parts.module, cfg, results)


def print_table(title: str, results: dict[str, Any]) -> None:
    """Print metrics by name, in full, on a terminal or in a log."""
    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in results.items():
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console(width=None if Console().is_terminal else 100).print(table)


def parameter_counts(parts: Parts) -> dict[str, int]:
    """How many numbers are learned or could be: all, and those that are no bias. The paper mixes both."""
    named = [*parts.core.named_parameters(), *parts.readout.named_parameters()]
    total = sum(weight.numel() for _, weight in named)
    biases = sum(weight.numel() for name, weight in named if name.split(".")[-1].startswith("bias"))
    return {"parameters_total": total, "parameters_weights": total - biases}


def _sizes(parts: Parts) -> str:
    counts = parameter_counts(parts)
    return f"{counts['parameters_total']:,} parameters, {counts['parameters_weights']:,} without biases"


def _guarded(prepare: Any) -> None:
    try:
        prepare()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(first_line(error)) from error


@contextmanager
def _known_failures(folder: Path) -> Iterator[None]:
    """Turn what can go wrong from outside into one line. Lightning would leave with exit code 0 on SIGTERM."""
    try:
        yield
    except SIGTERMException as error:
        raise Interrupted(signal.SIGTERM, "stopped by SIGTERM") from error
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {first_line(error)}") from error
    except ValueError as error:
        if "`val_check_interval`" not in str(error):  # which Lightning holds against the data once they are there
            raise
        raise ConfigError(f"trainer: {first_line(error)}") from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConfigError(
            f"{folder}: cannot be written to ({error.strerror}); ckpt_path=last goes on once it can be"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: {first_line(error)}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough, on a GPU or, under a limit, on the CPU, for which torch has no type of error."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def _quieten_libraries() -> None:
    """Keep Lightning's advertisements and devices list off the screen; warnings and errors stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # a report that was asked for
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")  # trainer=cpu, as asked
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    warnings.filterwarnings("ignore", message=".*not part of single contiguous chunk.*")  # cuDNN's; they are copied
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
