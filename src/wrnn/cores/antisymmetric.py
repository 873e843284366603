"""The antisymmetric RNN: an Euler step of a system that neither grows nor decays, plain or gated.

    A = W - W^T - gamma I
    plain: h_t = h_{t-1} + epsilon tanh(A h_{t-1} + V x_t + b)
    gated: h_t = h_{t-1} + epsilon z_t tanh(A h_{t-1} + V x_t + b)      z_t = sigma(A h_{t-1} + V_z x_t + b_z)

The real parts of A's eigenvalues are all -gamma; the Euler step itself grows by about epsilon^2 |eigenvalue|^2 / 2 a
step where gamma is 0. W is kept as its strict upper triangle. Both gate and candidate use the same A.
Source: Chang et al. 2019; no code is released. gamma, epsilon and the spread of W were searched, the best are unknown.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import not_negative, positive, whole_number
from wrnn.cores.base import LoopCore
from wrnn.cores.exprnn import skew

# B batch, I input features, N units


class AntisymmetricRNN(LoopCore):
    """An antisymmetric layer. V starts at N(0, 1/I), biases at 0.

    Args:
        input_size: I.
        hidden_size: N, at least 2.
        gated: whether a gate scales every step.
        step_size: epsilon, above 0.
        diffusion: gamma, at least 0.
        weight_scale: W starts at N(0, weight_scale^2 / N); 0 is a legal start.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a number out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        gated: bool = False,
        step_size: float = 0.1,
        diffusion: float = 0.01,
        weight_scale: float = 1.0,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size, minimum=2)
        self.gated = gated
        self.step_size = positive("model.core.step_size", step_size)
        self.diffusion = not_negative("model.core.diffusion", diffusion)
        not_negative("model.core.weight_scale", weight_scale)
        self.input_map = nn.Linear(input_size, (2 if gated else 1) * hidden_size)
        nn.init.normal_(self.input_map.weight, std=input_size**-0.5)
        nn.init.zeros_(self.input_map.bias)
        self.upper = nn.Parameter(torch.empty(hidden_size * (hidden_size - 1) // 2))
        nn.init.normal_(self.upper, std=weight_scale * hidden_size**-0.5)

    def matrices(self) -> tuple[Tensor, ...]:
        """A, (N, N)."""
        identity = torch.eye(self.hidden_size, dtype=self.upper.dtype, device=self.upper.device)
        return (skew(self.upper, self.hidden_size) - self.diffusion * identity,)

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        around = state @ matrices[0].T
        change = torch.tanh(around + drive[..., : self.hidden_size])
        if self.gated:
            change = change * torch.sigmoid(around + drive[..., self.hidden_size :])
        return state.add(change, alpha=self.step_size)
