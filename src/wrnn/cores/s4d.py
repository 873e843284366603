"""S4D: for each feature its own diagonal state space, computed as one long convolution.

    s' = A s + u, held over steps of length Delta      y = 2 Re(C s) + D u
    kernel_l = 2 Re sum_n C_n (e^{Delta A_n} - 1) / A_n e^{l Delta A_n}

A starts at -1/2 + i pi n, Delta spread evenly in the logarithm over [1e-3, 0.1].
Source: Gu et al. 2022 (S4D-Lin) and their released code.
"""

import math

import torch
from torch import Tensor, nn

from wrnn.checks import positive, whole_number
from wrnn.cores.base import ParameterGroup
from wrnn.cores.stack import Layer, causal_filter

# B batch, T time, H features, N half the state: complex numbers, of which each stands for a conjugate pair


class DiagonalStateSpace(Layer):
    """A layer for `LinearStack`.

    Args:
        hidden_size: H.
        state_size: 2N, even.
        step_min, step_max: range of Delta at the start, 0 < step_min <= step_max.
        slow_lr_scale: learning rate of Delta and A as a multiple of the run's; they never decay. The released code caps
            it at 1e-3.

    Raises: ValueError for a number out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 64,
        step_min: float = 1e-3,
        step_max: float = 0.1,
        slow_lr_scale: float = 0.1,
    ) -> None:
        super().__init__()
        if whole_number("model.core.layer.state_size", state_size, minimum=2) % 2:
            raise ValueError(f"model.core.layer.state_size={state_size}: must be even, as it counts conjugate pairs")
        positive("model.core.layer.step_max", step_max)
        positive("model.core.layer.step_min", step_min, at_most=step_max)
        self.slow_lr_scale = positive("model.core.layer.slow_lr_scale", slow_lr_scale)
        pairs = state_size // 2
        spread = torch.rand(hidden_size)
        self.log_step = nn.Parameter(math.log(step_min) + spread * (math.log(step_max) - math.log(step_min)))
        self.log_decay = nn.Parameter(torch.full((hidden_size, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs).float().repeat(hidden_size, 1))
        self.outer = nn.Parameter(torch.randn(2, hidden_size, pairs) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(hidden_size))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Delta and A learn slowly and never decay."""
        slow = (self.log_step, self.log_decay, self.frequency)
        return [ParameterGroup(slow, self.slow_lr_scale, weight_decay=0.0)]

    @property
    def state_size(self) -> int:
        """2 H N."""
        return 2 * self.log_decay.numel()

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: complex zeros (B, H, N)."""
        zeros = self.log_decay.new_zeros(batch_size, *self.log_decay.shape)
        return torch.complex(zeros, zeros)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        turn, weight = self._discrete()
        state = torch.exp(turn) * state + features[..., None]
        return 2 * (weight * state).sum(-1).real + self.skip * features, state

    def forward(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        turn, weight = self._discrete()
        powers = torch.exp(turn[..., None] * torch.arange(features.shape[1] + 1, device=turn.device))  # (H, N, T + 1)
        kernel = 2 * torch.einsum("hn,hnt->ht", weight, powers[..., :-1]).real
        read = causal_filter(features, kernel) + self.skip * features
        real_and_imaginary = torch.view_as_real(powers[..., :-1].flip(-1))
        last = torch.view_as_complex(torch.einsum("bth,hntr->bhnr", features, real_and_imaginary))
        if state is not None:
            read = read + 2 * torch.einsum("bhn,hnt->bth", state * weight, powers[..., 1:]).real
            last = last + powers[..., -1] * state
        return read, last

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """Delta A, and C (e^{Delta A} - 1) / A, each complex (H, N)."""
        a = torch.complex(-torch.exp(self.log_decay), self.frequency)
        turn = torch.exp(self.log_step)[:, None] * a
        return turn, torch.complex(*self.outer) * (torch.exp(turn) - 1) / a
