"""The one LightningModule: any core, any readout, any objective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from wrnn.cores.base import Core
from wrnn.errors import ConfigError
from wrnn.features import FixedFeatures
from wrnn.objectives import Objective
from wrnn.seeds import derive_seed
from wrnn.tasks.base import SequenceBatch


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule and when it steps.

    Args:
        scheduler: from an optimizer to a scheduler; None keeps the rate.
        interval: `step` or `epoch`.
        frequency: how many intervals between two steps.
        monitor: metric that a plateau schedule watches.
    """

    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None


_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class SequenceModule(L.LightningModule):
    """Trains a core and a readout on an objective.

    Args:
        core, readout, objective: built parts.
        optimizer: from groups of parameters to an optimizer.
        schedule: the learning-rate schedule.
        seed: all that a training step draws at random (dropout, say) is a function of it and of the step, so that a
            resumed run draws what an uninterrupted one would have.
        identity: plain numbers and strings that say what this run is; kept in its checkpoints.

    Attributes:
        features: the outputs of a core that does not learn, where they are remembered.
        cuda_graphs: whether forward and backward of a training step are recorded once and replayed; needs a GPU and
            batches of one shape.
    """

    def __init__(
        self,
        core: Core,
        readout: nn.Module,
        objective: Objective,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Schedule,
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.core, self.readout, self.objective = core, readout, objective
        self.make_optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.identity = dict(identity or {})
        self.features: FixedFeatures | None = None
        self.cuda_graphs = False
        self._replay: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        self.metrics = nn.ModuleDict(
            {
                f"{split}_metrics": MetricCollection(
                    dict(objective.metrics()), prefix=f"{split}/", compute_groups=False
                )
                for split in ("train", "val", "test")
            }
        )

    def forward(self, inputs: Tensor, shared_from: int | None = None) -> Tensor:
        """(B, T, I) -> the readout at the last step (B, O), or at every step (B, T, O), as the objective wants it.

        `shared_from`: see `SequenceBatch`.
        """
        if not self.objective.last_only:
            return self.core.read_every_step(inputs, self.readout)
        shared = {"shared_from": shared_from} if self.core.uses_shared_inputs else {}
        return self.readout(self.core(inputs, last_only=True, **shared)[0])

    def on_train_batch_start(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Fix the random draws of this step."""
        seed = derive_seed(self.seed, self.global_step, batch_idx)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # the other costs a sixth of a small step if there is no GPU
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """One batch; its metrics are computed at the steps that are logged."""
        if batch_idx == 0:
            self.objective.check(batch.inputs, batch.targets)
        if self.cuda_graphs:
            loss, outputs = self.replayed(batch)
        else:
            outputs = self._outputs(batch, "train")
            loss, outputs = self.objective.loss(outputs, batch.targets), outputs.detach()
        self.log("train/loss", loss, prog_bar=True)
        if is_logged_step(self.trainer):
            metrics = self._metrics("train")
            self.log_dict(metrics(outputs, batch.targets))
            metrics.reset()
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def _outputs(self, batch: SequenceBatch, split: str) -> Tensor:
        if self.features is not None and batch.numbers is not None and self.features.fits(split):
            outputs: Tensor = self.readout(self.features(split, batch.numbers))
            return outputs
        return cast(Tensor, self(batch.inputs, batch.shared_from))

    def _loss_and_outputs(self, inputs: Tensor, targets: Tensor, shared_from: int | None) -> tuple[Tensor, Tensor]:
        outputs = self(inputs, shared_from)
        return self.objective.loss(outputs, targets), outputs.detach()

    def replayed(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Loss and outputs of a batch by CUDA graphs, which the first batch has recorded; all must be of its shape."""
        if self._replay is None:
            step = _Step(self, batch.shared_from)
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # recorded on a stream of its own
            torch.cuda.make_graphed_callables(step, (batch.inputs.clone(), batch.targets.clone()))
            self._replay = step.forward  # replaced; the step as an attribute would become a part of this module
        return self._replay(batch.inputs, batch.targets)

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """One batch of the validation set."""
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """One batch of the test set."""
        self._evaluate(batch, "test", batch_idx)

    def _evaluate(self, batch: SequenceBatch, split: str, index: int) -> None:
        if index == 0:
            self.objective.check(batch.inputs, batch.targets)
        outputs = self._outputs(batch, split)
        size = len(batch.targets)
        self.log(f"{split}/loss", self.objective.loss(outputs, batch.targets), batch_size=size)
        metrics = self._metrics(split)
        metrics.update(outputs, batch.targets)
        self.log_dict(dict(metrics.items()), batch_size=size)

    def _metrics(self, split: str) -> MetricCollection:
        found = self.metrics[f"{split}_metrics"]
        assert isinstance(found, MetricCollection)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what it is a checkpoint of."""
        checkpoint["identity"] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the optimizer as it is on this device, fused or not, whatever it was where the run began."""
        fused = True if self._is_fused(self.trainer.strategy.root_device) else None
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                if "fused" in group and "fused" not in getattr(self.make_optimizer, "keywords", {}):
                    group["fused"] = fused

    def _is_fused(self, device: torch.device) -> bool:
        """Whether a step of the optimizer is one kernel: on a GPU if torch has it, and unless the config says."""
        make = self.make_optimizer
        if device.type != "cuda" or not isinstance(make, partial) or make.func not in _FUSED:
            return False
        mixed = self._trainer is not None and "mixed" in str(self._trainer.precision)  # Lightning clips no fused one
        return bool(make.keywords.get("fused", not mixed))

    def configure_optimizers(self) -> Any:
        """The optimizer and, if there is one, its schedule. Raises: ConfigError for settings that they refuse."""
        make = self.make_optimizer
        if self._is_fused(self.device):
            assert isinstance(make, partial)
            make = partial(make.func, *make.args, **{**make.keywords, "fused": True})
        groups, scales = self._parameter_groups()
        try:
            optimizer = make(groups)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] *= scale
        if self.schedule.scheduler is None:
            return optimizer
        make_scheduler = self.schedule.scheduler
        if isinstance(make_scheduler, partial):
            words = dict(make_scheduler.keywords)
            budget = -1 if self._trainer is None else self._trainer.max_steps
            if words.get("total_steps") in (-1, budget):  # which max_epochs may cut short
                words["total_steps"] = self._steps_in_all()
            if "max_lr" in words:
                words["max_lr"] = [words["max_lr"] * scale for scale in scales]
                if optimizer.defaults.get("momentum") == 0:  # one that was not asked for
                    words.setdefault("cycle_momentum", False)
            make_scheduler = partial(make_scheduler.func, *make_scheduler.args, **words)
        try:
            scheduler = make_scheduler(optimizer)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"scheduler: {error}") from error
        schedule = {"scheduler": scheduler, "interval": self.schedule.interval, "frequency": self.schedule.frequency}
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "monitor": self.schedule.monitor}}

    def _parameter_groups(self) -> tuple[list[dict[str, Any]], list[float]]:
        """Groups for the optimizer, those that the core wants apart after all others; and the scales of their rates."""
        groups: list[dict[str, Any]] = []
        apart: set[nn.Parameter] = set()
        scales = [1.0]
        for group in self.core.parameter_groups():
            decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
            groups.append({"params": list(group.parameters), **decay})
            scales.append(group.lr_scale)
            apart |= set(group.parameters)
        return [{"params": [weight for weight in self.parameters() if weight not in apart]}, *groups], scales

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """As Lightning's; then the core's weights are brought back into their range."""
        super().optimizer_step(*arguments, **more)
        self.core.constrain_()

    def _steps_in_all(self) -> int:
        """Optimizer steps of a budget in epochs; without a trainer any number will do to check them."""
        if self._trainer is None:
            return 100
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("scheduler: spans the budget, so set trainer.max_steps or trainer.max_epochs")
        return int(steps)


class _Step(nn.Module):
    """What is recorded of a training step: a function of tensors, and the weights it uses."""

    def __init__(self, module: SequenceModule, shared_from: int | None) -> None:
        super().__init__()
        self.module, self.shared_from = module, shared_from

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `SequenceModule.training_step`."""
        return self.module._loss_and_outputs(inputs, targets, self.shared_from)


def is_logged_step(trainer: L.Trainer, is_done: bool = False) -> bool:
    """Whether the training step under way, or just done, is one whose metrics are logged; the last of all is."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's logger connector
    step = trainer.global_step + (not is_done)
    return step % every == 0 or step == trainer.max_steps
