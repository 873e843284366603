"""The Lipschitz RNN: an Euler step of a linear part with known eigenvalues and a nonlinear one.

    A = beta (M_A - M_A^T) + (1 - beta) (M_A + M_A^T) - gamma I, W from M_W in the same way
    h_t = h_{t-1} + epsilon [A h_{t-1} + tanh(W h_{t-1} + E x_t + b)]
    gated: h_t = h_{t-1} + epsilon [A h_{t-1} + tanh(W h_{t-1} + E x_t + b)] sigma(W h_{t-1} + E_z x_t + b_z)

Source: Erichson et al. 2021 and their released code, its Euler form.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import not_negative, positive, whole_number, within
from wrnn.cores.base import LoopCore

# B batch, I input features, N units


class LipschitzRNN(LoopCore):
    """A Lipschitz layer. E and b in the framework's default start.

    Args:
        input_size: I.
        hidden_size: N.
        gated: whether a gate scales every step.
        step_size: epsilon, above 0.
        beta: share of the skew part, in [0, 1]; the paper asks for at least 1/2.
        gamma: how far the eigenvalues are moved to the left, at least 0.
        weight_scale: M_A and M_W start at N(0, (weight_scale / N)^2).
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a number out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        gated: bool = False,
        step_size: float = 0.03,
        beta: float = 0.75,
        gamma: float = 0.001,
        weight_scale: float = 0.1,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.gated = gated
        self.step_size = positive("model.core.step_size", step_size)
        self.beta = within("model.core.beta", beta, 0, 1)
        self.gamma = not_negative("model.core.gamma", gamma)
        not_negative("model.core.weight_scale", weight_scale)
        self.input_map = nn.Linear(input_size, (2 if gated else 1) * hidden_size)
        self.linear = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size))
        for matrix in (self.linear, self.weight):
            nn.init.normal_(matrix, std=weight_scale / hidden_size)

    def matrices(self) -> tuple[Tensor, ...]:
        """A and W, each (N, N)."""
        return self._mixed(self.linear), self._mixed(self.weight)

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        linear, weight = matrices
        around = state @ weight.T
        change = state @ linear.T + torch.tanh(around + drive[..., : self.hidden_size])
        if self.gated:
            change = change * torch.sigmoid(around + drive[..., self.hidden_size :])
        return state.add(change, alpha=self.step_size)

    def _mixed(self, matrix: Tensor) -> Tensor:
        identity = torch.eye(self.hidden_size, dtype=matrix.dtype, device=matrix.device)
        skew, symmetric = matrix - matrix.T, matrix + matrix.T
        return self.beta * skew + (1 - self.beta) * symmetric - self.gamma * identity
