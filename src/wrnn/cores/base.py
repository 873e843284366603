"""The contract of a recurrent core.

B batch, T time, I input features, O output features.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]


class Core(nn.Module, ABC):
    """A recurrent core: state in, state out, nothing remembered between calls.

    A subclass implements `initial_state`, `step`, `output_size` and `state_size`; `forward` is the loop over `step`
    until the subclass has a faster one that agrees with it. A core that sees whole sequences only (a convolution over
    time) sets `whole_sequence` and implements `forward` instead of `step`.
    """

    whole_sequence: ClassVar[bool] = False
    uses_shared_inputs: ClassVar[bool] = False
    """Whether `forward` takes `shared_from`: the step from which on all sequences have the same inputs, or None."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """O, the number of features a readout sees."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """How many numbers a state holds per sequence."""

    @property
    def ring_shape(self) -> tuple[int, int] | None:
        """(channels, neurons per channel) where the output is a set of rings, else None."""
        return None

    def check_device(self, device: torch.device) -> None:
        """Raise ValueError if the core is told to compute in a way that this device does not have."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first step, on the core's device and in its dtype."""

    @abstractmethod
    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: (B, I) and a state -> outputs (B, O) and the next state."""

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence.

        Shape: inputs (B, T, I), T >= 1 -> outputs (B, T, O), or (B, O) with `last_only`; and the last state.
        """
        if state is None:
            state = self.initial_state(inputs.shape[0])
        outputs = []
        for inputs_BI in inputs.unbind(1):
            output_BO, state = self.step(inputs_BI, state)
            outputs.append(output_BO)
        return (outputs[-1] if last_only else torch.stack(outputs, dim=1)), state

    def read_every_step(self, inputs: Tensor, readout: nn.Module) -> Tensor:
        """A readout of the output after every step: inputs (B, T, I) -> (B, T, readout's size).

        A core that can do it without returning all outputs says so here.
        """
        read: Tensor = readout(self(inputs)[0])
        return read
