"""UnICORNN: layers of undamped oscillators that are not coupled, each with a time step of its own; exactly invertible.

    z_t = z_{t-1} - Dt sigma(kappa) [tanh(w y_{t-1} + V x_t + b) + alpha y_{t-1}]
    y_t = y_{t-1} + Dt sigma(kappa) z_t

The positions y of a layer, after dropout with one mask for all steps, are the inputs of the next or of the readout.
Source: Rusch & Mishra 2021b and their released code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import not_negative, positive, share, whole_number
from wrnn.cores.base import Core, State

# B batch, T time, I input features, N oscillators a layer


class UndampedOscillators(Core):
    """A stack of UnICORNN layers; the readout sees y of the last. V starts Kaiming-uniform (a = 8), w at U(0, 1).

    Args:
        input_size: I.
        hidden_size: N, in every layer.
        num_layers: how many.
        time_step: Dt, above 0; kappa, which scales it for each oscillator, starts at U(+- 0.1).
        alpha: strength of the spring, at least 0.
        dropout: share of a layer's oscillators that what reads them does not see in training, in [0, 1).

    Raises: ValueError for a size or a number out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        num_layers: int = 3,
        time_step: float = 0.19,
        alpha: float = 30.65,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        whole_number("model.core.num_layers", num_layers)
        self.time_step = positive("model.core.time_step", time_step)
        self.alpha = not_negative("model.core.alpha", alpha)
        self.dropout = share("model.core.dropout", dropout)
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        maps = [nn.Linear(size, hidden_size) for size in sizes]
        self.maps = nn.ModuleList(maps)
        self.weights = nn.ParameterList(torch.rand(hidden_size) for _ in sizes)
        self.kappas = nn.ParameterList(torch.empty(hidden_size).uniform_(-0.1, 0.1) for _ in sizes)
        for linear in maps:
            nn.init.kaiming_uniform_(linear.weight, a=8)
            nn.init.zeros_(linear.bias)

    def input_parameters(self) -> list[nn.Parameter]:
        """The first layer's map."""
        return list(self.maps[0].parameters())

    @property
    def is_deterministic(self) -> bool:
        """Where there is no dropout."""
        return not self.dropout

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """2N a layer: y and z."""
        return 2 * self.hidden_size * len(self.maps)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """At rest: zeros (B, 2, N) a layer, y and z."""
        return tuple(w.new_zeros(batch_size, 2, self.hidden_size) for w in self.weights)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step in evaluation mode: (B, I) and (B, 2, N) a layer -> (B, N) and the next states."""
        outputs, after = self.forward(inputs[:, None], state)
        return outputs[:, 0], after

    def forward(
        self, inputs: Tensor, state: State | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A whole sequence: inputs (B, T, I) -> (B, T, N), or (B, N) with `last_only`; and the last states."""
        features, after = inputs, []
        befores = self.initial_state(len(inputs)) if state is None else state
        for layer, before in enumerate(befores):
            step, w = self.time_step * torch.sigmoid(self.kappas[layer]), self.weights[layer]
            positions = []
            y, z = before.unbind(1)
            for drive_BN in self.maps[layer](features).unbind(1):
                y, z = forth(y, z, drive_BN, w, step, self.alpha)
                positions.append(y)
            after.append(torch.stack([y, z], dim=1))
            features = torch.stack(positions, dim=1)
            if self.training and self.dropout:
                features = features * F.dropout(torch.ones_like(features[:, :1]), self.dropout)
        return (features[:, -1] if last_only else features), tuple(after)


def forth(y: Tensor, z: Tensor, drive: Tensor, w: Tensor, step: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """One step: y, z and drive (B, N), w and step (N,) -> the next y and z."""
    z = z - step * (torch.tanh(torch.addcmul(drive, w, y)) + alpha * y)
    return torch.addcmul(y, step, z), z
