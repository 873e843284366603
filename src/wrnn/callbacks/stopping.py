"""Runs that end themselves because they are hopeless."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from wrnn.checks import one_of
from wrnn.errors import ConfigError


class GiveUp(L.Callback):
    """Ends training at the first validation that misses a deadline; the run is then tested as any other.

    Args:
        metric: a validation metric.
        mode: `min` or `max`, which way it gets better.
        deadlines: pairs of an optimizer step and the worst value that the metric may have from then on. Of several
            that have passed the latest counts.

    Attributes:
        reason: why the run gave up; None while it has not.
    """

    def __init__(self, metric: str, mode: str, deadlines: Sequence[tuple[int, float]]) -> None:
        self.metric, self.mode = metric, one_of("callbacks.give_up.mode", mode, ("min", "max"))
        try:
            self.deadlines = {int(step): float(worst) for step, worst in deadlines}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"callbacks.give_up.deadlines={deadlines}: must be pairs [optimizer step, worst value]"
            ) from error
        self.reason: str | None = None
        self._missed: tuple[int, float] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that gave up and was stopped before its test has no more steps to make, unless deadlines are others."""
        if self._missed is not None:
            self.reason = self._judge(*self._missed)
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"reason": self.reason, "missed": self._missed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.reason, self._missed = state_dict["reason"], state_dict.get("missed")

    def _judge(self, step: int, value: float) -> str | None:
        """Why a run gives up whose metric has this value at this step, or None."""
        passed = [deadline for deadline in self.deadlines if deadline <= step]
        worst = self.deadlines[max(passed)] if passed else value
        if value <= worst if self.mode == "min" else value >= worst:
            return None
        return f"{self.metric} {value:.4g} at step {step}, {worst:g} was wanted by {max(passed)}"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the clock and at the metric. Raises: ConfigError where there is none of that name."""
        if trainer.state.fn != "fit" or all(step > trainer.global_step for step in self.deadlines):
            return
        if self.metric not in trainer.callback_metrics:
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ConfigError(f"callbacks.give_up.metric={self.metric}: not measured; {', '.join(known)} are")
        value = float(trainer.callback_metrics[self.metric])
        self.reason = self._judge(trainer.global_step, value)
        if self.reason is not None:
            self._missed = (trainer.global_step, value)
            trainer.should_stop = True
