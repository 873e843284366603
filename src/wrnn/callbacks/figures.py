"""Pictures that every run leaves behind."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from wrnn.analysis import plots
from wrnn.loggers import MetricsCSV, read_metrics
from wrnn.module import SequenceModule
from wrnn.tasks.base import Task

LEARNING_CURVE, STATE_OVER_TIME = "learning_curve", "state_over_time"


class RunFigures(L.Callback):
    """After the test: `learning_curve.png` and, for cores with rings, `state_over_time.png` of one test sequence.

    W&B gets them too, under the same names.

    Args:
        folder: where they go.
        monitor: the metric on the learning curve.
    """

    def __init__(self, folder: str | Path, monitor: str) -> None:
        self.folder, self.monitor = Path(folder), monitor

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw both, from what is on disk and from the tested weights."""
        assert isinstance(pl_module, SequenceModule)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV) and logger.path.exists():
                self._leave(trainer, LEARNING_CURVE, plots.learning_curve(read_metrics(logger.path), self.monitor))
        task = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        if pl_module.core.ring_shape is not None and isinstance(task, Task):
            inputs = task.make_batch("test", 0, 0).inputs[0].to(pl_module.device)
            states = plots.states_of(pl_module.core, inputs)
            title = "state over time, first test sequence: most active channels"
            self._leave(trainer, STATE_OVER_TIME, plots.state_over_time(states, title))

    def _leave(self, trainer: L.Trainer, name: str, figure: Figure) -> None:
        path = self.folder / f"{name}.png"
        plots.save(figure, path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(path)], step=trainer.global_step)
