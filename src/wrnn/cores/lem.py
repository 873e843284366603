"""Long expressive memory: two gated states, each with a time step of its own at every step.

    D_y = Dt sigma(W_1 y_{t-1} + V_1 x_t + b_1)           D_z = Dt sigma(W_2 y_{t-1} + V_2 x_t + b_2)
    z_t = (1 - D_z) z_{t-1} + D_z tanh(W_z y_{t-1} + V_z x_t + b_z)
    y_t = (1 - D_y) y_{t-1} + D_y tanh(W_y z_t + V_y x_t + b_y)

The second uses the new z. One bias vector a map, as the paper says; the released code holds two (4N more numbers).
Source: Rusch, Mishra, Erichson, Mahoney 2022, and their released code for the start.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import positive, whole_number
from wrnn.cores.base import LoopCore

# B batch, I input features, N units; maps in the order 1, 2, z, y


class LongExpressiveMemory(LoopCore):
    """A LEM layer; the readout sees y. All weights and biases start at U(+- 1 / sqrt(N)).

    Args:
        input_size: I.
        hidden_size: N.
        time_step: Dt, in (0, 1], which keeps both states within (-1, 1).
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a step out of range.
    """

    num_states = 2  # y and z

    def __init__(
        self, input_size: int, hidden_size: int = 128, time_step: float = 1.0, recurrence: str = "auto"
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.time_step = positive("model.core.time_step", time_step, at_most=1)
        self.input_map = nn.Linear(input_size, 4 * hidden_size)
        self.weight_from_y = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.weight_from_z = nn.Parameter(torch.empty(hidden_size, hidden_size))
        for weight in self.parameters():
            nn.init.uniform_(weight, -(hidden_size**-0.5), hidden_size**-0.5)

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see `LoopCore`."""
        y, z = state
        of_y, of_z = drive.split([3 * self.hidden_size, self.hidden_size], dim=-1)
        gate_y, gate_z, candidate_z = torch.addmm(of_y, y, self.weight_from_y.T).chunk(3, dim=-1)
        z = torch.lerp(z, torch.tanh(candidate_z), self.time_step * torch.sigmoid(gate_z))
        candidate_y = torch.addmm(of_z, z, self.weight_from_z.T)
        y = torch.lerp(y, torch.tanh(candidate_y), self.time_step * torch.sigmoid(gate_y))
        return y, z
