"""The coupled oscillatory RNN: damped oscillators, driven by the inputs and by each other.

    z_t = z_{t-1} + Dt [tanh(W y_{t-1} + W' z_{t-1} + V x_t + b) - gamma y_{t-1} - epsilon z_{t-1}]
    y_t = y_{t-1} + Dt z_t

y: positions, z: velocities; the position takes the new velocity, as in the released code.
Source: Rusch & Mishra 2021 and their released code.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import not_negative, one_of, positive, whole_number
from wrnn.cores.base import LoopCore

# B batch, I input features, N oscillators


class CoupledOscillators(LoopCore):
    """A coRNN layer; the readout sees y.

    Args:
        input_size: I.
        hidden_size: N.
        time_step: Dt, above 0.
        gamma: squared frequency of an oscillator, at least 0; fixed.
        epsilon: its damping, at least 0; fixed.
        start: the framework's, of one map from (x, y, z) (`joint`, as released for adding and MNIST), or of three maps
            (`separate`, as released for nsCIFAR10).
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size, a number out of range or a start that there is not.
    """

    num_states = 2  # y and z

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        time_step: float = 0.042,
        gamma: float = 2.7,
        epsilon: float = 4.7,
        start: str = "joint",
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.time_step = positive("model.core.time_step", time_step)
        self.gamma = not_negative("model.core.gamma", gamma)
        self.epsilon = not_negative("model.core.epsilon", epsilon)
        self.input_map = nn.Linear(input_size, hidden_size)
        self.weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        joint = one_of("model.core.start", start, ("joint", "separate")) == "joint"
        for name, weight in self.named_parameters():
            fan_in = input_size + 2 * hidden_size if joint else hidden_size if name == "weight" else input_size
            nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5)

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see `LoopCore`."""
        y, z = state
        force = torch.tanh(torch.addmm(drive, torch.cat([y, z], dim=-1), self.weight.T))
        return oscillate(force, y, z, self.time_step, self.gamma, self.epsilon)


def oscillate(
    force: Tensor, y: Tensor, z: Tensor, time_step: float, gamma: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """One step of damped oscillators under a force, all of one shape: the next y and z."""
    force = force.add(y, alpha=-gamma).add(z, alpha=-epsilon)
    z = z.add(force, alpha=time_step)
    return y.add(z, alpha=time_step), z
