"""The minGRU: a GRU whose gate and candidate see the input alone, so that the recurrence is linear in its state.

    z = sigma(W_z u_t)        h_t = (1 - z) h_{t-1} + z g(W_h u_t)        g(v) = v + 1/2 for v >= 0, else sigma(v)

g keeps candidates positive, as the logarithmic form of the paper asks. The inputs say what is forgotten, without a
nonlinear loop.
Source: Feng et al. 2024; the equations as in its public re-implementations.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import positive
from wrnn.cores.stack import Layer
from wrnn.recurrence import linear_recurrence

# B batch, T time, H features and N units


class MinimalGRU(Layer):
    """A layer for `LinearStack`, with 2 H N weights, and H N more to come back to H features where N differs.

    Args:
        hidden_size: H.
        expansion: N / H, above 0.

    Raises: ValueError for a number out of range.
    """

    def __init__(self, hidden_size: int, expansion: float = 1.0) -> None:
        super().__init__()
        self.num_units = max(1, round(positive("model.core.layer.expansion", expansion) * hidden_size))
        self.gates = nn.Linear(hidden_size, 2 * self.num_units, bias=False)
        back = self.num_units != hidden_size
        self.back = nn.Linear(self.num_units, hidden_size, bias=False) if back else nn.Identity()

    @property
    def state_size(self) -> int:
        """N."""
        return self.num_units

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: zeros (B, N)."""
        return self.gates.weight.new_zeros(batch_size, self.num_units)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        keep, new = self._gated(features)
        state = keep * state + new
        return self.back(state), state

    def forward(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        state = self.initial_state(len(features)) if state is None else state
        states_BTN = linear_recurrence(*self._gated(features), state)
        return self.back(states_BTN), states_BTN[:, -1]

    def _gated(self, features: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate = self.gates(features).chunk(2, dim=-1)
        z = torch.sigmoid(gate)
        return 1 - z, z * torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
