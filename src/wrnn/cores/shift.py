"""Shift registers: a wave without ring, nonlinearity or mixing channels; inputs move one place a step and fall off.

    s_t = S s_{t-1} + B u_t        S: one place down, nothing enters at the top

`ShiftRegister` shows all places to the readout. `ShiftFilter` reads y_t = <C, s_t> + D u_t, the shift SSM of H3: a
filter as long as the register.
Source: Fu et al. 2023 (H3) and their released code.
"""

import math

import torch
from torch import Tensor, nn

from wrnn.checks import whole_number
from wrnn.cores.base import LoopCore, State
from wrnn.cores.stack import Layer, causal_filter

# B batch, T time, I input features, H features or channels, N places


class ShiftRegister(LoopCore):
    """Channels of N places; u = V x + b enters each at its first place.

    Args:
        input_size: I.
        num_channels: H.
        num_places: N; None is the length of the sequence, so that nothing falls off.
        sequence_length: T of the task; more places than that would stay empty.
        recurrence: `reference` is the loop over `step`; any other word cuts windows out of the inputs.

    Raises: ValueError for a size that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        num_channels: int = 16,
        num_places: int | None = None,
        sequence_length: int | None = None,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.num_channels = whole_number("model.core.num_channels", num_channels)
        self.num_places = places(num_places, sequence_length, "model.core.num_places")
        self.input_map = nn.Linear(input_size, num_channels)

    @property
    def output_size(self) -> int:
        """H * N."""
        return self.num_channels * self.num_places

    @property
    def state_size(self) -> int:
        """H * N."""
        return self.output_size

    def initial_state(self, batch_size: int) -> Tensor:
        """Nothing has been seen: zeros (B, H, N)."""
        return self.input_map.weight.new_zeros(batch_size, self.num_channels, self.num_places)

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        return torch.cat([drive[..., None], state[..., :-1]], dim=-1)

    def read(self, state: Tensor) -> Tensor:
        """All places of all channels: (B, H * N)."""
        return state.flatten(1)

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence: inputs (B, T, I) -> (B, T, H*N), or (B, H*N) with `last_only`; and the state (B, H, N)."""
        if self.recurrence == "reference":
            return super().forward(inputs, state, last_only=last_only)
        if state is None:
            state = self.initial_state(len(inputs))
        assert isinstance(state, Tensor)
        newest_last = torch.cat([state.flip(-1), self.drive(inputs).transpose(1, 2)], dim=-1)
        last = newest_last[..., -self.num_places :].flip(-1)
        if last_only:
            return self.read(last), last
        windows_BHTN = newest_last[..., 1:].unfold(-1, self.num_places, 1)
        return windows_BHTN.flip(-1).transpose(1, 2).flatten(-2), last


class ShiftFilter(Layer):
    """The shift SSM, a layer for `LinearStack`. B starts at the first place alone, C Kaiming-uniform, D at N(0, 1).

    Args:
        hidden_size: H; every feature has a register of its own.
        num_places: N; None is the length of the sequence.
        sequence_length: T of the task.

    Raises: ValueError for a size that makes no sense.
    """

    asks_sequence_length = True

    def __init__(self, hidden_size: int, num_places: int | None = None, sequence_length: int | None = None) -> None:
        super().__init__()
        self.num_places = places(num_places, sequence_length, "model.core.layer.num_places")
        self.inner = nn.Parameter(torch.zeros(hidden_size, self.num_places))
        self.outer = nn.Parameter(torch.empty(hidden_size, self.num_places))
        self.skip = nn.Parameter(torch.randn(hidden_size))
        nn.init.ones_(self.inner[:, :1].detach())
        nn.init.kaiming_uniform_(self.outer, a=math.sqrt(5))

    @property
    def state_size(self) -> int:
        """H * N."""
        return self.inner.numel()

    def initial_state(self, batch_size: int) -> Tensor:
        """Nothing has been seen: zeros (B, H, N)."""
        return self.inner.new_zeros(batch_size, *self.inner.shape)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Layer`."""
        state = nn.functional.pad(state[..., :-1], (1, 0)) + self.inner * features[..., None]
        return (state * self.outer).sum(-1) + self.skip * features, state

    def forward(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Layer`. What the register held before adds a filter's tail to the first N - 1 steps."""
        steps, size = features.shape[1], self.num_places
        length = 2 * size
        # kernel_l = sum_n C_{n+l} B_n: how much of an input is read l steps after it came
        spectrum = torch.fft.rfft(self.outer, n=length) * torch.fft.rfft(self.inner, n=length).conj()
        read = causal_filter(features, torch.fft.irfft(spectrum, n=length)[:, :size]) + self.skip * features
        recent = features[:, -size:].flip(1).transpose(1, 2)  # newest first
        last = torch.fft.irfft(torch.fft.rfft(recent, n=length) * torch.fft.rfft(self.inner, n=length), n=length)[
            ..., :size
        ]
        if state is not None:
            old = torch.fft.rfft(state, n=length).conj() * torch.fft.rfft(self.outer, n=length)
            tail = torch.fft.irfft(old, n=length)[..., 1 : min(steps, size - 1) + 1]
            read = read + nn.functional.pad(tail, (0, steps - tail.shape[-1])).transpose(1, 2)
            last = last + nn.functional.pad(state, (min(steps, size), 0))[..., :size]
        return read, last


def places(num_places: int | None, sequence_length: int | None, name: str) -> int:
    """N: as asked for, else the length of the sequence. Raises: ValueError for a register that could not fill."""
    if num_places is None:
        return whole_number("sequence_length", sequence_length)
    whole_number(name, num_places)
    if sequence_length is not None and num_places > sequence_length:
        raise ValueError(
            f"{name}={num_places}: must be at most the {sequence_length} steps of the sequence, or null for as many"
        )
    return num_places
