"""The outputs of a core that does not learn, computed once a sequence instead of once a sequence and epoch."""

import torch
from torch import Tensor

from wrnn.cores.base import Core
from wrnn.objectives import Objective
from wrnn.recurrence.notices import say_once
from wrnn.tasks.base import Task
from wrnn.tasks.images import ImageTask

LARGEST = 2**31
"""How many bytes of outputs are remembered of a split, at most."""


class FixedFeatures:
    """Remembers the outputs after the last step of all sequences of a split, from when it is first asked for one.

    They are computed in the order in which the split holds them, not in that of training, so that no bit of them
    depends on where a run was cut off.

    Args:
        core: none of its weights learns.
        task: has the same sequences at every pass.
    """

    def __init__(self, core: Core, task: ImageTask) -> None:
        self.core, self.task = core, task
        self._remembered: dict[str, Tensor] = {}

    def fits(self, split: str) -> bool:
        """Whether those of a split take at most `LARGEST` bytes; a line says where they do not."""
        size = 4 * len(self.task.labels[split]) * self.core.output_size
        if size > LARGEST:
            say_once(f"model.frozen: outputs are computed anew every epoch; all of them take {size / 2**30:.1f} GiB")
        return size <= LARGEST

    def __call__(self, split: str, numbers: Tensor) -> Tensor:
        """The outputs (B, O) for the sequences of a split with these numbers (B,)."""
        if split not in self._remembered:
            self._remembered[split] = self._compute(split)
        return self._remembered[split][numbers]

    @torch.no_grad()
    def _compute(self, split: str) -> Tensor:
        shared = {"shared_from": self.task.shared_from} if self.core.uses_shared_inputs else {}
        numbers = torch.arange(len(self.task.labels[split]), device=self.task.labels[split].device)
        parts = numbers.split(self.task.eval_batch_size)
        return torch.cat([self.core(self.task.sequences(split, part), last_only=True, **shared)[0] for part in parts])


def fixed_features(core: Core, task: Task, objective: Objective) -> FixedFeatures | None:
    """What spares a run the recurrence after its first epoch.

    None where the core learns, sequences change from pass to pass, or more than the last step is read.
    """
    learns = any(weight.requires_grad for weight in core.parameters())
    if learns or not core.is_deterministic or not objective.last_only:
        return None
    if not isinstance(task, ImageTask) or not task.is_fixed:
        return None
    return FixedFeatures(core, task)
