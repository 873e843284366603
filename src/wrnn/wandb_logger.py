"""Runs in W&B: one per run folder, however often the run is stopped and taken up again.

wandb is imported where it is used: training without it does not load it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from wrnn.checks import not_negative
from wrnn.config import fingerprint, first_line
from wrnn.errors import ConfigError


def wandb_logger(
    save_dir: str | Path,
    project: str = "wrnn",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    log_model: bool = False,
    finish_timeout: float = 300.0,
) -> WandbLogger:
    """Lightning's logger, with the id of the W&B run that `save_dir`, a run folder, already holds, if any.

    A run that is stopped and taken up again is one run there, also where its parts were written offline: `wandb sync`
    joins what has one id. What a kill made the run compute again is logged again, with the values it had before, at the
    same `trainer/global_step`; curves over that are whole. `entity` is a team or a user of W&B, None the default of the
    account; `log_model` uploads the checkpoints; the rest is what W&B shows of a run.

    `finish_timeout`: for how many seconds a run that has ended waits for what is not uploaded yet, 0 for ever; with no
    network it would hold a GPU for nothing. `wandb sync --include-online FOLDER` uploads it later.

    Raises: ConfigError where W&B cannot be reached or knows no account, before anything is written.
    """
    import wandb

    not_negative("logger.wandb.finish_timeout", finish_timeout)
    if wandb.setup().settings.mode not in ("offline", "disabled", "dryrun"):
        try:
            wandb.Api()
        except wandb.errors.Error as error:
            raise ConfigError(
                f"logger=wandb: {first_line(error)} WANDB_MODE=offline needs no account and no network"
            ) from error
    settings = wandb.Settings(finish_timeout=finish_timeout)
    return WandbLogger(
        save_dir=save_dir, id=known_id(Path(save_dir)), project=project, entity=entity, name=name, group=group,
        job_type=job_type, tags=list(tags), notes=notes, log_model=log_model, settings=settings,
    )  # fmt: skip


def known_id(folder: Path) -> str | None:
    """The id of the newest W&B run in a run folder, None where there is none; W&B then draws one."""
    logs = folder.glob("wandb/*run-*/run-*.wandb")  # the folder's name is its time and id, and may have a number behind
    newest = max(logs, key=lambda log: log.parent.name.removeprefix("offline-"), default=None)
    return newest.stem.removeprefix("run-") if newest else None


def facts(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain values, and two names to group by that it does not hold.

    `start` is the recurrence's: shift, identity, ...; pytorch; or own, of a core that knows no other. `cell` names all
    that changes a result but the run seed: the runs of a cell differ by chance alone.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    unseeded = OmegaConf.create(plain)
    unseeded.seed = 0
    if "order_seed" in unseeded.task.datamodule:
        unseeded.task.datamodule.order_seed = 0  # by definition the run seed
    core, rate, clip = plain["model"]["core"], plain["optimizer"]["lr"], plain["trainer"]["gradient_clip_val"]
    weight = core["init"]["weight"] if "init" in core else {"_target_": "own"}
    start = weight["_target_"].split(".")[-1].rstrip("_") if weight else "pytorch"
    cell = f"{cfg.model.name} {start} lr {rate:g} clip {clip} {fingerprint(unseeded)}"
    return {**{str(key): value for key, value in plain.items()}, "start": start, "cell": cell}


def close(loggers: Sequence[Logger], exit_code: int, results: dict[str, Any] | None = None) -> None:
    """End the W&B run, so that the next one of this process gets one of its own; its results become its summary."""
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return
    import wandb

    if wandb.run is not None and results:
        wandb.run.summary.update(results)
    wandb.finish(exit_code)
