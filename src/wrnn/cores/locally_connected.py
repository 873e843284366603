"""The Wave-RNN with a kernel of its own at every neuron: what sharing the kernel around the ring is worth.

    h_t[i, n] = phi(sum_{j, k} u[n, i, j, k] h_{t-1}[j, n + k - K // 2] + (V x_t + b_V)[i, n] + b_u[i, n])

Source: Keller et al. 2024, appendix (its locally connected variant); the released code starts it as the shift, at every
neuron alike, with the bias at 0.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import odd_kernel, one_of, whole_number
from wrnn.cores.base import LoopCore
from wrnn.inits import Initializer, ones_, shift_
from wrnn.recurrence import NONLINEARITIES

# B batch, I input features, C channels, N neurons per channel, K kernel taps


class LocallyConnectedRNN(LoopCore):
    """Rings with local connections that are not shared.

    Args:
        input_size: I.
        num_channels: C, rings that the kernels mix.
        ring_size: N, neurons per ring.
        kernel_size: K, odd and at most N.
        nonlinearity: relu, tanh or identity.
        init: start of the kernel at each neuron and of b_u.
        input_init: start of V and of b_V.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a start that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        num_channels: int = 16,
        ring_size: int = 256,
        kernel_size: int = 3,
        nonlinearity: str = "relu",
        init: Initializer = Initializer(shift_),
        input_init: Initializer = Initializer(ones_),
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        self.input_size = whole_number("input_size", input_size)
        self.num_channels = whole_number("model.core.num_channels", num_channels)
        self.ring_size = whole_number("model.core.ring_size", ring_size)
        self.kernel_size = odd_kernel(kernel_size, ring_size, "model.core.ring_size")
        self.nonlinearity = one_of("model.core.nonlinearity", nonlinearity, NONLINEARITIES)
        self.input_map = nn.Linear(input_size, num_channels * ring_size)
        self.kernel = nn.Parameter(torch.empty(ring_size, num_channels, num_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(ring_size, num_channels))
        for kernel, bias in zip(self.kernel.detach(), self.bias.detach(), strict=True):
            init(kernel, bias, fan_in=num_channels * kernel_size)
        input_init(
            self.input_map.weight.view(num_channels, ring_size, input_size), self.input_map.bias, fan_in=input_size
        )

    @property
    def output_size(self) -> int:
        """C * N: the rings, one after the other."""
        return self.num_channels * self.ring_size

    @property
    def state_size(self) -> int:
        """C * N."""
        return self.output_size

    @property
    def ring_shape(self) -> tuple[int, int]:
        """(C, N)."""
        return self.num_channels, self.ring_size

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: zeros (N, B, C), a product of matrices for each neuron."""
        return self.kernel.new_zeros(self.ring_size, batch_size, self.num_channels)

    def drive(self, inputs: Tensor) -> Tensor:
        """V x + b_V + b_u: (..., I) -> (..., C, N)."""
        driven: Tensor = self.input_map(inputs).unflatten(-1, self.ring_shape) + self.bias.T
        return driven

    def matrices(self) -> tuple[Tensor, ...]:
        """The kernels as one matrix a neuron, (N, K * C, C)."""
        return (self.kernel.permute(0, 3, 2, 1).flatten(1, 2),)

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        halo = self.kernel_size // 2
        around = torch.cat([state.roll(-tap, dims=0) for tap in range(-halo, halo + 1)], dim=-1)
        return NONLINEARITIES[self.nonlinearity](torch.baddbmm(drive.permute(2, 0, 1), around, matrices[0]))

    def read(self, state: Tensor) -> Tensor:
        """The rings, one after the other: (B, C * N)."""
        return state.permute(1, 2, 0).flatten(1)
