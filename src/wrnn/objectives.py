"""What a task asks of a model: which steps are read, the loss, and the metrics. One class per kind of target.

B batch, T time, I inputs, K classes, O numbers, R steps of recall.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy

from wrnn.checks import one_of, whole_number
from wrnn.errors import ConfigError


class MeanOf(MeanMetric):
    """Mean over sequences of `function(outputs, targets)`, which returns one number per sequence, shape (B,)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(nan_strategy="disable")  # a NaN shows as NaN
        self.function = function

    def update(self, outputs: Tensor, targets: Tensor) -> None:  # type: ignore[override]  # pairs, as in all our metrics
        """Take in one batch of outputs and targets."""
        super().update(self.function(outputs, targets))


class Objective(nn.Module, ABC):
    """Loss and metrics of a task; `last_only` says whether only the last step is read."""

    last_only: ClassVar[bool]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The number that is minimised, a scalar."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Fresh torchmetrics by name, each updated with (outputs, targets)."""

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that are none for inputs (B, T, I). The first batch of every pass is held against it.

        Raises: ConfigError.
        """


def _check_classes(targets: Tensor, shape: tuple[int, ...], dims: str, num_classes: int) -> None:
    if targets.dtype not in (torch.int64, torch.uint8) or targets.shape != shape:
        raise ConfigError(f"task: targets are {_in_words(targets)}; must be int64 of shape {dims} = {tuple(shape)}")
    low, high = int(targets.amin()), int(targets.amax())
    if low < 0 or high >= num_classes:
        raise ConfigError(f"task: targets are in [{low}, {high}]; must be in [0, {num_classes - 1}], see output_size")


def _in_words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


class ClassifyLastStep(Objective):
    """One class per sequence, read at the last step: logits (B, K), targets (B,). Cross-entropy in nats, accuracy."""

    last_only = True

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.num_classes = whole_number("output_size", output_size, minimum=2)

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """See `Objective`."""
        _check_classes(targets, inputs.shape[:1], "(B,)", self.num_classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def metrics(self) -> dict[str, Metric]:
        """Fraction of sequences classified right, and the unscaled cross-entropy."""
        return {
            "accuracy": MulticlassAccuracy(self.num_classes, average="micro"),
            "cross_entropy": MeanOf(lambda logits, targets: F.cross_entropy(logits, targets, reduction="none")),
        }


class RegressLastStep(Objective):
    """O numbers per sequence, read at the last step: outputs (B, O), targets (B, O). Mean squared error."""

    last_only = True

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.num_outputs = output_size

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """See `Objective`."""
        shape = (len(inputs), self.num_outputs)
        if targets.shape != shape:  # others would be broadcast
            raise ConfigError(f"task: targets are {_in_words(targets)}; must be of shape (B, O) = {shape}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, targets)

    def metrics(self) -> dict[str, Metric]:
        """The same, unscaled."""
        return {"mse": MeanSquaredError()}


class RecallEveryStep(Objective):
    """One symbol at every step, the last `recall_length` of which are the memory: logits (B, T, K), targets (B, T).

    `cross_entropy` and `mse` (softmax against one-hot) are means over all T steps, unscaled; `accuracy` and
    `sequence_accuracy` count the recalled symbols, and the sequences without one mistake. `cross_entropy_over_50` is
    what the paper's tables print as "MSE": cross-entropy divided by the size of its test batch. All are computed in
    float64 for each sequence, because in float32 a cross-entropy below 1e-7 a symbol is rounding.

    Args:
        output_size: K.
        recall_length: R, in [1, T].
        loss_scale: `none`, or `per_batch` to divide the loss by the batch size as the released code does. The paper's
            clip values belong to that division: without it, clip 1 is 128 times tighter than theirs.
    """

    last_only = False

    def __init__(self, output_size: int, recall_length: int = 10, loss_scale: str = "none") -> None:
        super().__init__()
        self.num_classes = whole_number("output_size", output_size, minimum=2)
        self.recall_length = recall_length
        self.loss_scale = one_of("task.objective.loss_scale", loss_scale, ("none", "per_batch"))

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """See `Objective`."""
        _check_classes(targets, inputs.shape[:2], "(B, T)", self.num_classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over all steps, divided by the batch size if so configured."""
        loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        return loss / outputs.shape[0] if self.loss_scale == "per_batch" else loss

    def metrics(self) -> dict[str, Metric]:
        """See the class."""
        recall = self.recall_length

        def right_BR(logits: Tensor, targets: Tensor) -> Tensor:
            return (logits[:, -recall:].argmax(-1) == targets[:, -recall:]).double()

        def cross_entropy_B(logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits.double().mT, targets, reduction="none").mean(1)

        def squared_error_B(logits: Tensor, targets: Tensor) -> Tensor:
            return (logits.double().softmax(-1) - F.one_hot(targets, self.num_classes)).square().mean((1, 2))

        return {
            "cross_entropy": MeanOf(cross_entropy_B),
            "cross_entropy_over_50": MeanOf(lambda logits, targets: cross_entropy_B(logits, targets) / 50),
            "mse": MeanOf(squared_error_B),
            "accuracy": MeanOf(lambda logits, targets: right_BR(logits, targets).mean(1)),
            "sequence_accuracy": MeanOf(lambda logits, targets: right_BR(logits, targets).amin(1)),
        }
