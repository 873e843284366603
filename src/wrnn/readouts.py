"""Readouts: from a core's output to the task's, at the last step or at every step. Shape (..., I) -> (..., O)."""

from torch import Tensor, nn

from wrnn.checks import whole_number
from wrnn.inits import Initializer


class LinearReadout(nn.Linear):
    """One linear map with a bias.

    Args:
        input_size: width of the core's output.
        output_size: width of the task's output.
        init: its start; None is the framework's default.
    """

    def __init__(self, input_size: int, output_size: int, init: Initializer | None = None) -> None:
        super().__init__(input_size, output_size)
        if init is not None:
            init(self.weight, self.bias, input_size)


class MLPReadout(nn.Module):
    """Two linear maps with ReLU units between them.

    Args:
        input_size: width of the core's output.
        output_size: width of the task's output.
        hidden_size: ReLU units between; 100 give the 420k parameters of Keller et al. 2024, Table 2 (wRNN + MLP).
    """

    def __init__(self, input_size: int, output_size: int, hidden_size: int = 100) -> None:
        super().__init__()
        whole_number("model.readout.hidden_size", hidden_size)
        self.layers = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size))

    def forward(self, outputs: Tensor) -> Tensor:
        """(..., input_size) -> (..., output_size)."""
        return self.layers(outputs)
