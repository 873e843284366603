"""No recurrence at all: a line of delays that hands the whole past to the readout.

    h_t = (x_t, x_{t-1}, ..., x_{t-T+1})

With a linear readout of the last step this is one linear layer on the flattened sequence, the FC baseline of the
paper's Figure 13: what a memory is worth that neither computes nor forgets.
Source: Keller et al. 2024, appendix C.
"""

import torch
from torch import Tensor

from wrnn.checks import whole_number
from wrnn.cores.base import Core, State

# B batch, T time, L length of the line, I input features


class DelayLine(Core):
    """The last L inputs, newest first; nothing in it is learned.

    Args:
        input_size: I.
        sequence_length: L, of the task's sequences.

    Raises: ValueError for a size that makes no sense.
    """

    silence: Tensor

    def __init__(self, input_size: int, sequence_length: int) -> None:
        super().__init__()
        self.input_size = whole_number("input_size", input_size)
        self.length = whole_number("sequence_length", sequence_length)
        self.register_buffer("silence", torch.zeros(()), persistent=False)  # knows device and dtype

    @property
    def output_size(self) -> int:
        """L * I."""
        return self.length * self.input_size

    @property
    def state_size(self) -> int:
        """L * I."""
        return self.output_size

    def initial_state(self, batch_size: int) -> Tensor:
        """Nothing has been seen: zeros (B, L, I)."""
        return self.silence.new_zeros(batch_size, self.length, self.input_size)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """One step: (B, I) and (B, L, I) -> outputs (B, L*I) and the line moved by one place."""
        assert isinstance(state, Tensor)
        state_BLI = torch.cat([inputs[:, None], state[:, :-1]], dim=1)
        return state_BLI.flatten(1), state_BLI

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """A whole sequence: inputs (B, T, I) -> (B, T, L*I), or (B, L*I) with `last_only`; and the state (B, L, I)."""
        if state is None:
            state = self.initial_state(len(inputs))
        assert isinstance(state, Tensor)
        if not last_only:
            outputs, last = super().forward(inputs, state)
            assert isinstance(last, Tensor)
            return outputs, last
        last_BLI = torch.cat([inputs.flip(1), state], dim=1)[:, : self.length]
        return last_BLI.flatten(1), last_BLI
