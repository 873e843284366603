"""The Neural Wave Machine: oscillators that are coupled to their neighbours only, by kernels that all of them share.

    z_t = z_{t-1} + Dt [tanh(V x_t + b + w_z * z_{t-1} + w_y * y_{t-1}) - gamma y_{t-1} - epsilon z_{t-1}]
    y_t = y_{t-1} + Dt z_t

A coRNN with its two dense couplings replaced by circular cross-correlations, each with a bias that is one number; or,
uncoupled, by one number each.
Source: Keller & Welling 2023 and their released code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import not_negative, odd_kernel, one_of, positive, whole_number
from wrnn.cores.base import LoopCore
from wrnn.cores.cornn import oscillate

# B batch, I input features, N oscillators on a square S x S

COUPLINGS = ("torus", "rings", "uncoupled")


class NeuralWaveMachine(LoopCore):
    """An NWM layer; the readout sees y. Weights and biases in the framework's default start; uncoupled, w_z = w_y = 1.

    Args:
        input_size: I.
        hidden_size: N; the square of a whole number for `torus` and `rings`. The released code takes 121 where 128 is
            asked for.
        coupling: `torus`, all neighbours on a square that is wrapped around; `rings`, those along each row of it;
            `uncoupled`, each oscillator by itself.
        kernel_size: of the kernels, odd and at most sqrt(N).
        time_step, gamma, epsilon: as in `CoupledOscillators`, whose values the released code takes over.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a number out of range.
    """

    num_states = 2  # y and z

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 4096,
        coupling: str = "torus",
        kernel_size: int = 3,
        time_step: float = 0.042,
        gamma: float = 2.7,
        epsilon: float = 4.7,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.coupling = one_of("model.core.coupling", coupling, COUPLINGS)
        self.side = math.isqrt(hidden_size)
        if coupling != "uncoupled":
            if self.side**2 != hidden_size:
                near = f"{self.side**2} or {(self.side + 1) ** 2}"
                raise ValueError(
                    f"model.core.hidden_size={hidden_size}: must be the square of a whole number for"
                    f" model.core.coupling={coupling}; {near}, say"
                )
            odd_kernel(kernel_size, self.side, "the side of the square")
        self.halo = kernel_size // 2
        self.time_step = positive("model.core.time_step", time_step)
        self.gamma = not_negative("model.core.gamma", gamma)
        self.epsilon = not_negative("model.core.epsilon", epsilon)
        shapes = {"torus": (kernel_size, kernel_size), "rings": (1, kernel_size), "uncoupled": (1, 1)}
        self.input_map = nn.Linear(input_size, hidden_size)
        self.kernel = nn.Parameter(torch.ones(1, 2, *shapes[coupling]))  # on z, on y
        if coupling != "uncoupled":
            self.bias = nn.Parameter(torch.empty(2))
            bound = math.prod(shapes[coupling]) ** -0.5
            nn.init.uniform_(self.kernel, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def ring_shape(self) -> tuple[int, int] | None:
        """(S, S) where rows are rings or the square is a torus."""
        return None if self.coupling == "uncoupled" else (self.side, self.side)

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see `LoopCore`."""
        y, z = state
        force = torch.tanh(drive + self._around(y, z))
        return oscillate(force, y, z, self.time_step, self.gamma, self.epsilon)

    def _around(self, y: Tensor, z: Tensor) -> Tensor:
        if self.coupling == "uncoupled":
            return self.kernel[0, 0] * z + self.kernel[0, 1] * y
        pair = torch.stack([z, y], dim=1).unflatten(-1, (self.side, self.side))
        above = self.halo if self.coupling == "torus" else 0
        padded = F.pad(pair, (self.halo, self.halo, above, above), mode="circular")
        # Every field of every sequence as a channel by itself: with one output channel the backward on a CPU is the
        # framework's slowest, many times this.
        kernel = self.kernel[0].repeat(len(pair), 1, 1)[:, None]
        both = F.conv2d(padded.flatten(0, 1)[None], kernel, groups=len(kernel)).view_as(pair)
        return both.sum(1).flatten(1) + self.bias.sum()
