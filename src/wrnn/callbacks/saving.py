"""Saving and stopping: a run that is killed at any moment goes on where it was, bit for bit."""

import io
import logging
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from wrnn.checks import one_of
from wrnn.errors import ConfigError, DivergedError, Interrupted
from wrnn.files import moved, write_aside
from wrnn.loggers import MetricsCSV
from wrnn.module import is_logged_step

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether that batch ended with a step of the optimizer, not within a sum of gradients."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint aside, on the same disk, and renames it: a full disk or a kill leaves the old one, whole.

    Lightning's own writer moves a file from the system's temporary folder, which copies it where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`, a local file."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with write_aside(Path(path)) as file:
            file.write(buffer.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which would forget the best so far of a run folder that was moved."""

    @property
    def state_key(self) -> str:
        """As Lightning's own."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint. What it names in its old folder is meant in this one; nothing of it is, if not there."""
        old, here = str(state_dict.get("dirpath")), str(self.dirpath)
        if old == here or Path(moved(str(state_dict.get("best_model_path")), old, here)).is_file():
            super().load_state_dict(moved(state_dict, old, here))


class ResumePoint(Checkpoint):
    """Keeps one checkpoint to resume from, and turns SIGTERM and Ctrl-C into a save and a clean exit.

    Lightning resumes exactly from a checkpoint that was written at the end of a training batch, unless validation
    was to follow that batch: then the validation is lost, or plateau schedules miss a step. So this callback saves

    - at the end of the batch before the one that validation follows: what a kill in validation costs is one batch;
      where gradients of several batches are summed, at the last of such a group before it,
    - at the end of any other batch once `every_minutes` have passed, or when a signal came,
    - where validation follows every step, after the validation,
    - when the budget ends: in mid-epoch what was before the validation that closes a run, so that a run with a longer
      budget can take it up as if it had never stopped, but only once that validation is over, or a kill in it would
      cost it; at an epoch's end, after all of it.

    A second Ctrl-C, or a signal outside of training or during its first batch, stops at once without saving: until then
    there is nothing new to save, and the first batch may take minutes where a frozen core sees all images in it.

    Args:
        path: the file.
        every_minutes: the most work that a SIGKILL may cost, about.
    """

    def __init__(self, path: str | Path, every_minutes: float = 4.0) -> None:
        if every_minutes <= 0:
            raise ValueError(f"callbacks.resume_point.every_minutes={every_minutes!r}: must be more than 0")
        self.path = Path(path)
        self.every_minutes = every_minutes
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._closing = self.path.with_name("closing.ckpt")
        self._signal: int | None = None
        self._training = False
        self._trainer: L.Trainer | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to the signals while Lightning trains or tests."""
        self._trainer = trainer
        if not self._old_handlers:
            self._old_handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGTERM:
            return  # clusters send it more than once; SIGKILL follows where they lose patience
        if self._signal is not None or not self._training:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}")
        self._signal = number
        if self._trainer is not None:  # Lightning, which was told first, would leave after this batch, saved or not
            self._trainer._signal_connector.received_sigterm = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop metrics that a killed run wrote after its last checkpoint, and start the clock."""
        self._closing.unlink(missing_ok=True)  # of a run that was killed in the validation that was to close it
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.truncate(trainer.global_step)
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Mend what a resumed Lightning loop gets wrong.

        Its count of logged steps is one ahead after a resumption at an epoch's end; and it would take the whole epoch
        in which it resumed for a repetition, and skip the plateau schedule at its end.
        """
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        trainer.fit_loop._restarting = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is safe and due, leave if a signal asks for it."""
        self._training = True
        if self._validation_follows(trainer, batch_idx):
            unsaved = self._every_step_validates(trainer) or self._validation_follows(trainer, batch_idx - 1)
            if self._signal is not None and not unsaved:
                self._leave()
            return
        together = trainer.accumulate_grad_batches
        if (batch_idx + 1) % together:
            return  # a sum of gradients has begun, which no checkpoint holds
        overdue = time.monotonic() - self._saved_at > 60 * self.every_minutes
        due = any(self._validation_follows(trainer, batch_idx + ahead) for ahead in range(1, together + 1))
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            if self._signal is not None and self.path.exists():
                self._leave()
            trainer._logger_connector.update_train_step_metrics()  # else logged after this hook, or never if killed
            trainer.save_checkpoint(self._closing, weights_only=False)
            return
        if self._signal is not None or overdue or due or trainer.global_step == trainer.max_steps - 1:
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)
        if self._signal is not None:
            self._leave()

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave in the middle of validation: the state one batch before it is saved."""
        if self._signal is not None and self._training and self.path.exists():
            self._leave()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after validation where every step is followed by one."""
        batch_idx = trainer.fit_loop.batch_idx
        follows = self._training and _stepped(trainer, batch_idx) and self._validation_follows(trainer, batch_idx)
        if follows and self._every_step_validates(trainer):
            self._save(trainer)
            if self._signal is not None:
                self._leave()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a budget that ended with an epoch; else let the saved callbacks know what the last validation gave."""
        closing = self._closing if self._closing.exists() else self.path
        if closing == self.path and trainer.global_step != self._saved_step:
            self._save(trainer)
        else:
            checkpoint = torch.load(closing, map_location="cpu", weights_only=True)
            states = {found.state_key: found.state_dict() for found in trainer.callbacks}  # type: ignore[attr-defined]
            checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
            trainer.strategy.save_checkpoint(checkpoint, self.path)
            self._closing.unlink(missing_ok=True)
        self._training = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening as a running training."""
        self._training = False

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def _leave(self) -> None:
        assert self._signal is not None
        left = f"ckpt_path=last goes on from {self.path}" if self.path.exists() else "nothing was saved yet"
        raise Interrupted(self._signal, f"stopped by {signal.Signals(self._signal).name}; {left}")

    @staticmethod
    def _validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
        """Whether Lightning validates after that batch of the epoch."""
        done = batch_idx + 1
        if done <= 0:
            return False
        if done >= trainer.num_training_batches:
            return True
        every = trainer.val_check_batch
        if every is None or every == float("inf"):
            return False
        if trainer.check_val_every_n_epoch is None:
            done += trainer.fit_loop.epoch_loop.total_batch_idx - trainer.fit_loop.batch_idx
        return done % int(every) == 0

    def _every_step_validates(self, trainer: L.Trainer) -> bool:
        together, every = trainer.accumulate_grad_batches, trainer.val_check_batch
        return trainer.num_training_batches <= together or (every is not None and together % every == 0)


class StopOnNonFinite(L.Callback):
    """Ends the run before a step whose loss or gradient is not finite would spoil the weights.

    A gradient may be so large that only its norm overflows: clipping then makes it zero and the run goes on, as under
    torch's own clipping. On a CPU every step is looked at; on a GPU, where looking waits for the device, the logged
    ones, and the weights before each checkpoint. With `precision=16-mixed` the scaler skips a step whose gradient is
    too large for it; it ends the run once its scale has come down below 1.
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        """Remember the loss of this step."""
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at loss and gradient before they act; log the gradient's norm as it is before clipping."""
        logged = is_logged_step(trainer)
        if pl_module.device.type != "cpu" and not logged:
            return
        gradients = [
            weight.grad for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        if logged:
            pl_module.log("train/gradient_norm", norm)
        assert self._loss is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # it skips a step that is too large, and halves
        scale = 1.0 if scaler is None else scaler.get_scale()
        spoilt = not (math.isfinite(norm) or all(torch.isfinite(gradient).all() for gradient in gradients))
        if (spoilt and (scaler is None or scale < 1)) or not math.isfinite(self._loss):
            rate = optimizer.param_groups[0]["lr"]
            raise DivergedError(
                f"diverged at step {trainer.global_step + 1}: loss {self._loss.item() / scale:g},"
                f" gradient norm {norm.item():g}, learning rate {rate:g}; the checkpoints hold the last good state"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never let spoilt weights replace a good checkpoint."""
        if not all(torch.isfinite(weight).all() for weight in pl_module.parameters()):
            raise DivergedError(f"diverged before step {trainer.global_step}: a weight is no longer finite")


class SolvedStep(L.Callback):
    """Notes the first step at which a metric was as good as a threshold; None while it was not.

    Args:
        metric: logged name, of validation (looked at after each) or of training (looked at every logged step).
        threshold: None switches the callback off.
        mode: `min` or `max`, which way the metric gets better.
        stop: end the training there, with what the budget has left unused.
    """

    def __init__(self, metric: str | None, threshold: float | None, mode: str = "min", stop: bool = False) -> None:
        one_of("callbacks.solved_step.mode", mode, ("min", "max"))
        if stop and (metric is None or threshold is None):
            raise ValueError("callbacks.solved_step.stop=true: needs callbacks.solved_step.metric and threshold")
        self.metric, self.threshold, self.mode, self.stop = metric, threshold, mode, stop
        self.step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that stopped itself and was killed before its test has no more steps to make."""
        trainer.should_stop = trainer.should_stop or (self.stop and self.step is not None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at a validation metric. Raises: ConfigError where there is none of that name."""
        if self.metric and not self.metric.startswith("train/"):
            self._look(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at a training metric after a step; between two of them gradients are summed. Raises: ConfigError."""
        if self.metric and self.metric.startswith("train/") and _stepped(trainer, batch_idx):
            if is_logged_step(trainer, is_done=True):
                self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        if self.threshold is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert self.metric is not None
        if self.metric not in trainer.callback_metrics:
            split = f"{self.metric.split('/')[0]}/"
            known = sorted(name for name in trainer.callback_metrics if name.startswith(split))
            raise ConfigError(f"callbacks.solved_step.metric={self.metric}: not measured; {', '.join(known)} are")
        value = trainer.callback_metrics[self.metric]
        if self.step is None:
            if value <= self.threshold if self.mode == "min" else value >= self.threshold:
                self.step = trainer.global_step
                logger.info(f"solved at step {self.step}: {self.metric} {value:.3g}, wanted {self.threshold:g}")
        if self.stop and self.step is not None:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, int | None]:
        """For the checkpoint."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """From the checkpoint."""
        self.step = state_dict["step"]


class ValidateAtEnd(L.Callback):
    """Has the last step validated when `max_steps` ends a run in the middle of an epoch, as `max_time` already does."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ask Lightning to stop, which validates first."""
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True
