"""The expRNN: an orthogonal recurrence, as the exponential of a skew-symmetric matrix, and a real modReLU.

    h_t = modReLU(e^A h_{t-1} + V x_t)        A^T = -A        modReLU(z) = sign(z) max(|z| + b, 0)

The control for "it is the isometry": norms are kept as by a wave, without any place to travel to.
Source: Lezcano-Casado & Martinez-Rubio 2019 and their released code; starts of A: Henaff et al. 2016, Helfrich et al.
2018. The exponential is taken at 0 throughout; their later dtriv moves a base point.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from wrnn.checks import one_of, positive, whole_number
from wrnn.cores.base import LoopCore, ParameterGroup

# B batch, I input features, N units


class ExponentialRNN(LoopCore):
    """An expRNN layer. V starts Kaiming-normal and has no bias; b starts at U(+- 0.01).

    Args:
        input_size: I.
        hidden_size: N, at least 2.
        start: rotations in N/2 planes, by angles U(-pi, pi) (`henaff`), or by -sqrt((1 - cos u) / (1 + cos u)) with
            u ~ U(0, pi/2) (`cayley`).
        skew_lr_scale: learning rate of A as a multiple of the run's, above 0.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a choice that makes no sense.
    """

    can_be_recorded = False  # torch's exponential of a matrix looks at its norm

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 170,
        start: str = "cayley",
        skew_lr_scale: float = 0.1,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size, minimum=2)
        self.skew_lr_scale = positive("model.core.skew_lr_scale", skew_lr_scale)
        one_of("model.core.start", start, ("henaff", "cayley"))
        self.input_map = nn.Linear(input_size, hidden_size, bias=False)
        nn.init.kaiming_normal_(self.input_map.weight, nonlinearity="relu")
        self.upper = nn.Parameter(torch.zeros(hidden_size * (hidden_size - 1) // 2))
        self.bias = nn.Parameter(torch.empty(hidden_size).uniform_(-0.01, 0.01))
        planes = hidden_size // 2
        if start == "henaff":
            angles = torch.empty(planes).uniform_(-math.pi, math.pi)
        else:
            cosine = torch.cos(torch.empty(planes).uniform_(0, math.pi / 2))
            angles = -torch.sqrt((1 - cosine) / (1 + cosine))
        row, column = torch.triu_indices(hidden_size, hidden_size, 1)
        with torch.no_grad():
            self.upper[(row % 2 == 0) & (column == row + 1)] = angles

    def parameter_groups(self) -> list[ParameterGroup]:
        """A learns more slowly."""
        return [ParameterGroup((self.upper,), self.skew_lr_scale)]

    def matrices(self) -> tuple[Tensor, ...]:
        """e^A, orthogonal, (N, N)."""
        exponential: Tensor = _Exponential.apply(skew(self.upper, self.hidden_size))
        return (exponential,)

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        (rotation,) = matrices
        z_BN = torch.addmm(drive, state, rotation.T)
        return torch.sign(z_BN) * torch.relu(z_BN.abs() + self.bias)


def skew(upper: Tensor, size: int) -> Tensor:
    """The antisymmetric matrix (N, N) with these N(N-1)/2 numbers above its diagonal, row by row."""
    row, column = torch.triu_indices(size, size, 1, device=upper.device)
    square = upper.new_zeros(size, size).index_put((row, column), upper)
    return square - square.T


class _Exponential(torch.autograd.Function):
    """e^A for A (N, N), with a backward that keeps its digits.

    The derivative in direction G is a block of the exponential of [[A, G], [0, A]]. That rounds relative to its largest
    number, and torch takes G as it comes, which over a long sequence grows to thousands: here it is brought to size 1.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return torch.matrix_exp(matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (matrix,) = ctx.saved_tensors
        size = gradient.abs().max().clamp(min=torch.finfo(gradient.dtype).tiny)
        above = torch.cat([matrix.mT, gradient / size], dim=1)
        below = torch.cat([torch.zeros_like(matrix), matrix.mT], dim=1)
        return size * torch.matrix_exp(torch.cat([above, below]))[: len(matrix), len(matrix) :]
