"""Recordings of the state while a model learns: the same sequence, early and late."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger

from wrnn.analysis import plots
from wrnn.checks import whole_number
from wrnn.errors import ConfigError
from wrnn.files import write_aside
from wrnn.module import SequenceModule
from wrnn.tasks.base import Task

EARLY_AND_LATE, ANIMATION = "states_early_and_late", "state_animation"


class RecordStates(L.Callback):
    """Leaves `states/step_<n>.npz`: states (C, N, T) as float16 of one validation sequence, and its inputs (T, I).

    Written before the first step, after the steps that are asked for, and at the end. After the test follow
    `states_early_and_late.png` and `state_animation.gif`, which W&B gets too. Training is not touched: nothing is drawn
    at random, and no gradient is recorded. What was recorded before a stop stays.

    Args:
        folder: the run's.
        at_steps: optimizer steps after which to record, beside the first and the last.
        sequence: which sequence of the first validation batch.
        max_channels: how many channels to keep, the first ones; a core without rings has one.

    Raises: ValueError for a step or a number that makes no sense; ConfigError for a sequence that is not there.
    """

    def __init__(
        self, folder: str | Path, at_steps: Sequence[int] = (), sequence: int = 0, max_channels: int = 16
    ) -> None:
        self.folder = Path(folder)
        self.at_steps = {whole_number("callbacks.record_states.at_steps", step) for step in at_steps}
        self.sequence = whole_number("callbacks.record_states.sequence", sequence, minimum=0)
        self.max_channels = whole_number("callbacks.record_states.max_channels", max_channels)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The start, unless the run goes on from a later step."""
        if trainer.global_step == 0:
            self._record(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """A step that is asked for."""
        if trainer.global_step in self.at_steps:
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step."""
        self._record(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the first and the last recording."""
        found = sorted(self.folder.glob("states/step_*.npz"), key=lambda path: int(path.stem.split("_")[1]))
        if not found:
            return
        early, late = (torch.from_numpy(np.load(path)["states"]).float() for path in (found[0], found[-1]))
        steps = [path.stem.split("_")[1] for path in (found[0], found[-1])]
        picture = self.folder / f"{EARLY_AND_LATE}.png"
        plots.save(plots.early_and_late(early, late, f"states after {steps[0]} and {steps[1]} steps"), picture)
        moving = self.folder / f"{ANIMATION}.gif"
        plots.animate(late, moving)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(EARLY_AND_LATE, [str(picture)], step=trainer.global_step)
                logger.log_video(ANIMATION, [str(moving)], step=trainer.global_step, format=["gif"])

    def _record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        path = self.folder / "states" / f"step_{trainer.global_step}.npz"
        task = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        assert isinstance(module, SequenceModule) and isinstance(task, Task)
        if path.exists():
            return
        batch = task.make_batch("val", 0, 0).inputs
        if self.sequence >= len(batch):
            raise ConfigError(f"callbacks.record_states.sequence={self.sequence}: must be below {len(batch)}")
        inputs = batch[self.sequence]
        states = plots.states_of(module.core, inputs)[: self.max_channels].cpu()
        with write_aside(path) as file:
            np.savez_compressed(file, states=states.half().numpy(), inputs=inputs.numpy())
