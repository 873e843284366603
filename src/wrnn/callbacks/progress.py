"""What the user sees while a run goes: a bar on a terminal, plain lines elsewhere; and what results.json says of it."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

from wrnn.tasks.base import BatchStream


def progress(every_seconds: float = 30.0) -> Callback:
    """A rich bar with loss, speed and time left where stdout is a terminal, else `ProgressLines`."""
    return Bar(refresh_rate=10) if sys.stdout.isatty() else ProgressLines(every_seconds)


class Bar(RichProgressBar):
    """Loss, speed and time left in the epoch; epochs are counted from 1, steps where epochs have no limit."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            return f"epoch {current_epoch + 1}, from step {self.trainer.global_step} of {self.trainer.max_steps}"
        return f"epoch {current_epoch + 1} of {epochs}"


class ProgressLines(Callback):
    """A line every `every_seconds` and after each validation: step, loss, speed, time left. For logs and clusters."""

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._said_at = self._started_at = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started_at = self._said_at = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Say where the run is, now and then."""
        if time.monotonic() - self._said_at >= self.every_seconds:
            self._say(trainer, "train/loss")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what a validation gave; at most one line in two seconds."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and time.monotonic() - self._said_at >= 2:
            self._say(trainer, "val/")

    def _say(self, trainer: L.Trainer, wanted: str) -> None:
        now = time.monotonic()
        self._said_at = now
        speed = (trainer.global_step - self._first_step) / max(now - self._started_at, 1e-9)
        metrics = "  ".join(f"{k} {float(v):.4g}" for k, v in trainer.callback_metrics.items() if k.startswith(wanted))
        total = self._total_steps(trainer)
        left = f"  left {timedelta(seconds=round((total - trainer.global_step) / speed))}" if total and speed else ""
        of = f"/{total}" if total else ""
        print(f"step {trainer.global_step}{of}  {metrics}  {speed:.3g} steps/s{left}", flush=True)

    @staticmethod
    def _total_steps(trainer: L.Trainer) -> int | None:
        total = trainer.estimated_stepping_batches
        return int(total) if total != float("inf") else None


class RunRecord(Callback):
    """What results.json tells of training beside the metrics of the test; over all starts of a run.

    Attributes:
        validation: metrics of the last validation.
        steps: optimizer steps taken.
        seconds: spent in them, batch making included.
        data_seconds: spent making batches.
    """

    def __init__(self) -> None:
        self.validation: dict[str, float] = {}
        self.steps = 0
        self.seconds = self.data_seconds = 0.0
        self._batch_started_at = 0.0
        self._stream_seconds = 0.0
        self._steps_before = 0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Start of a step; its batch is already made."""
        self._batch_started_at = time.perf_counter()
        self._steps_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """End of a step; its batch cost what the stream's clock has gained."""
        stream = trainer.train_dataloader
        making = stream.seconds - self._stream_seconds if isinstance(stream, BatchStream) else 0.0
        self._stream_seconds += making
        self.data_seconds += making
        self.seconds += making + time.perf_counter() - self._batch_started_at
        self.steps += trainer.global_step - self._steps_before  # none where gradients are only summed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what it gave."""
        self.validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {key: getattr(self, key) for key in ("validation", "steps", "seconds", "data_seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(state_dict)
