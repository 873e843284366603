"""The linear recurrent unit: complex numbers that turn and decay, each by itself.

    h_t = lambda h_{t-1} + e^gamma (B u_t)        lambda = exp(-e^nu + i e^theta)        y_t = Re(C h_t) + D u_t

The wave's own control: a linear ring, seen in its Fourier modes, is such a unit with |lambda| = 1 and equally spaced
phases.
Source: Orvieto et al. 2023.
"""

import math

import torch
from torch import Tensor, nn

from wrnn.checks import positive, whole_number, within
from wrnn.cores.base import ParameterGroup
from wrnn.cores.stack import Layer
from wrnn.recurrence import linear_recurrence

# B batch, T time, H features, N complex units


class LinearRecurrentUnit(Layer):
    """A layer for `LinearStack`.

    Args:
        hidden_size: H.
        num_units: N, complex.
        radius_min, radius_max: |lambda| starts with |lambda|^2 spread evenly between their squares;
            0 <= radius_min < radius_max < 1.
        max_phase: the angle of lambda starts spread evenly over (0, max_phase], in radians, at most 2 pi.
        slow_lr_scale: learning rate of nu, theta and gamma as a multiple of the run's; they never decay.

    Raises: ValueError for a number out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_units: int = 128,
        radius_min: float = 0.9,
        radius_max: float = 0.999,
        max_phase: float = 2 * math.pi,
        slow_lr_scale: float = 0.25,
    ) -> None:
        super().__init__()
        self.num_units = whole_number("model.core.layer.num_units", num_units)
        within("model.core.layer.radius_max", radius_max, 1e-6, 1 - 1e-6)
        if not 0 <= radius_min < radius_max:
            raise ValueError(
                f"model.core.layer.radius_min={radius_min}: must be in [0, model.core.layer.radius_max={radius_max})"
            )
        positive("model.core.layer.max_phase", max_phase, at_most=2 * math.pi + 1e-9)
        self.slow_lr_scale = positive("model.core.layer.slow_lr_scale", slow_lr_scale)
        squared = torch.empty(num_units).uniform_(radius_min**2, radius_max**2).clamp_(min=1e-12)
        phase = max_phase * (1 - torch.rand(num_units))  # in (0, max_phase]: it is kept as a logarithm
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
        self.theta = nn.Parameter(torch.log(phase))
        self.gamma = nn.Parameter(0.5 * torch.log1p(-squared))
        self.inner = nn.Parameter(torch.randn(2, num_units, hidden_size) / math.sqrt(2 * hidden_size))
        self.outer = nn.Parameter(torch.randn(2, hidden_size, num_units) / math.sqrt(num_units))
        self.skip = nn.Parameter(torch.randn(hidden_size))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Lambda and gamma learn slowly and never decay."""
        return [ParameterGroup((self.nu, self.theta, self.gamma), self.slow_lr_scale, weight_decay=0.0)]

    @property
    def state_size(self) -> int:
        """2N."""
        return 2 * self.num_units

    @property
    def eigenvalues(self) -> Tensor:
        """lambda, complex (N,), inside the unit circle."""
        return torch.exp(torch.complex(-torch.exp(self.nu), torch.exp(self.theta)))

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: complex zeros (B, N)."""
        zeros = self.nu.new_zeros(batch_size, self.num_units)
        return torch.complex(zeros, zeros)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        state = self.eigenvalues * state + self._drive(features)
        return self._read(features, state), state

    def forward(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        state = self.initial_state(len(features)) if state is None else state
        states_BTN = linear_recurrence(self.eigenvalues, self._drive(features), state)
        return self._read(features, states_BTN), states_BTN[:, -1]

    def _drive(self, features: Tensor) -> Tensor:
        scale = torch.exp(self.gamma)
        return torch.complex(scale * (features @ self.inner[0].T), scale * (features @ self.inner[1].T))

    def _read(self, features: Tensor, states: Tensor) -> Tensor:
        return states.real @ self.outer[0].T - states.imag @ self.outer[1].T + self.skip * features
