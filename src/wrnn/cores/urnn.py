"""The unitary RNN: a complex recurrence that keeps norms by construction, as a product of simple unitary maps.

    h_t = modReLU(W h_{t-1} + V x_t)      W = D_3 R_2 F^-1 D_2 P R_1 F D_1
    modReLU(z) = z max(|z| + b, 0) / (|z| + 1e-5)

D: phases; F: the discrete Fourier transform, unitary; P: a fixed random permutation; R: reflections I - 2 v v* / |v|^2.
The first state is learned. The readout sees real and imaginary parts.
Source: Arjovsky et al. 2016 and their released code.
"""

import math

import torch
from torch import Tensor, nn

from wrnn.checks import whole_number
from wrnn.cores.base import LoopCore

# B batch, I input features, N complex units


class UnitaryRNN(LoopCore):
    """A uRNN layer.

    Phases start at U(-pi, pi), b at U(+- 0.01), the first state at U(+- sqrt(3 / 2N)), the rest Glorot-uniform.

    Args:
        input_size: I.
        hidden_size: N, complex.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size that makes no sense.
    """

    permutation: Tensor

    def __init__(self, input_size: int, hidden_size: int = 512, recurrence: str = "auto") -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.input_map = nn.Linear(input_size, 2 * hidden_size, bias=False)
        nn.init.xavier_uniform_(self.input_map.weight)
        self.phases = nn.Parameter(torch.empty(3, hidden_size).uniform_(-math.pi, math.pi))
        self.reflections = nn.Parameter(torch.empty(2, 2, hidden_size))  # of each, real and imaginary part
        bound = math.sqrt(6 / (2 + 2 * hidden_size))
        nn.init.uniform_(self.reflections, -bound, bound)
        self.bias = nn.Parameter(torch.empty(hidden_size).uniform_(-0.01, 0.01))
        start = math.sqrt(3 / (2 * hidden_size))
        self.first_state = nn.Parameter(torch.empty(2, hidden_size).uniform_(-start, start))
        self.register_buffer("permutation", torch.randperm(hidden_size))

    @property
    def output_size(self) -> int:
        """2N: real parts, then imaginary parts."""
        return 2 * self.hidden_size

    @property
    def state_size(self) -> int:
        """2N."""
        return 2 * self.hidden_size

    def initial_state(self, batch_size: int) -> Tensor:
        """The learned first state, complex (B, N)."""
        return torch.complex(*self.first_state).expand(batch_size, -1)

    def matrices(self) -> tuple[Tensor, ...]:
        """The phases on the unit circle, complex (3, N), and the reflections' directions, of norm 1, complex (2, N)."""
        directions = torch.complex(self.reflections[:, 0], self.reflections[:, 1])
        length = directions.abs().square().sum(-1, keepdim=True).sqrt()
        return torch.polar(torch.ones_like(self.phases), self.phases), directions / length

    def rotate(self, state: Tensor, phases: Tensor, directions: Tensor) -> Tensor:
        """W h: (B, N) -> (B, N), with what `matrices` gives."""
        state = reflect(torch.fft.fft(state * phases[0], norm="ortho"), directions[0])
        state = torch.fft.ifft(state[:, self.permutation] * phases[1], norm="ortho")
        return reflect(state, directions[1]) * phases[2]

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        z_BN = self.rotate(state, *matrices) + torch.complex(*drive.chunk(2, dim=-1))
        size_BN = (z_BN.real.square() + z_BN.imag.square() + 1e-20).sqrt()  # |z| has no gradient at 0
        return z_BN * (torch.relu(size_BN + self.bias) / (size_BN + 1e-5))

    def read(self, state: Tensor) -> Tensor:
        """Real parts, then imaginary parts: (B, 2N)."""
        return torch.cat([state.real, state.imag], dim=-1)


def reflect(state: Tensor, direction: Tensor) -> Tensor:
    """Mirror h, h - 2 v (v* h): (B, N) and a v of norm 1, both complex."""
    return state - 2 * (state @ direction.conj())[:, None] * direction
