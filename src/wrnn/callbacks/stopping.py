"""Runs that end themselves because they are hopeless."""

from collections.abc import Sequence

import lightning as L
import torch


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
        if mode not in ("min", "max"):
            raise ValueError(f"callbacks.give_up.mode={mode}: must be min or max")
        self.metric, self.mode = metric, mode
        try:
            self.deadlines = {int(step): float(worst) for step, worst in deadlines}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"callbacks.give_up.deadlines={deadlines}: must be pairs [optimizer step, worst value]"
            ) from error
        self.reason: str | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the clock and at the metric."""
        passed = [step for step in self.deadlines if step <= trainer.global_step]
        if trainer.state.fn != "fit" or not passed:
            return
        worst = self.deadlines[max(passed)]
        value = float(trainer.callback_metrics.get(self.metric, torch.nan))
        if not (value <= worst if self.mode == "min" else value >= worst):
            self.reason = (
                f"{self.metric} {value:.4g} at step {trainer.global_step}, {worst:g} was wanted by {max(passed)}"
            )
            trainer.should_stop = True
