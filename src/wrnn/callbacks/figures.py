"""Pictures that every run leaves behind."""

from pathlib import Path

import lightning as L

from wrnn.analysis import plots
from wrnn.loggers import MetricsCSV, read_metrics
from wrnn.module import SequenceModule
from wrnn.tasks.base import Task


class RunFigures(L.Callback):
    """After the test: `learning_curve.png` and, for cores with rings, `state_over_time.png` of one test sequence.

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
                figure = plots.learning_curve(read_metrics(logger.path), self.monitor)
                plots.save(figure, self.folder / "learning_curve.png")
        task = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        if pl_module.core.ring_shape is not None and isinstance(task, Task):
            inputs = task.make_batch("test", 0, 0).inputs[0].to(pl_module.device)
            states = plots.ring_states(pl_module.core, inputs)
            title = "state over time, first test sequence: most active channels"
            plots.save(plots.state_over_time(states, title), self.folder / "state_over_time.png")
