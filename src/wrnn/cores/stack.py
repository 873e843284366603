"""Layers of linear recurrence, alone or in the residual blocks that make a deep network of them.

    block: u -> u + GLU(GELU(layer(norm(u))))        GLU(v) = P v sigma(Q v)

A linear recurrence alone cannot multiply two inputs, so it cannot add marked numbers; it can copy. `block=none` is the
recurrence alone, the control; `block=glu` the model that papers train.
Source: the block of Orvieto et al. 2023 and Gu et al. 2022, with LayerNorm for BatchNorm: a step needs no batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import one_of, share, whole_number
from wrnn.cores.base import LOOPS, Core, ParameterGroup, State

# B batch, T time, I input features, H features of a layer


class Layer(nn.Module, ABC):
    """A recurrence from H features to H features."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """How many real numbers a state holds per sequence."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """The state before the first step."""

    @abstractmethod
    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: (B, H) and a state -> (B, H) and the next state."""

    @abstractmethod
    def forward(self, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """A whole sequence, as fast as can be: (B, T, H) and a state, None for the first -> (B, T, H) and the last."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """See `Core`."""
        return []


class LinearStack(Core):
    """An input map I -> H, then layers one after the other.

    Args:
        input_size: I.
        layer: from `hidden_size` to a layer, and from `sequence_length` too if it asks for it.
        hidden_size: H.
        num_layers: how many layers.
        block: `glu` or `none`, see above.
        dropout: share of a block's features set to 0 in training, in [0, 1).
        recurrence: `reference` is the loop over `step`; any other word the layers' own fast form.
        sequence_length: steps of the task's sequences.

    Raises: ValueError for a size or a choice that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        layer: Callable[..., Layer],
        hidden_size: int = 128,
        num_layers: int = 2,
        block: str = "glu",
        dropout: float = 0.0,
        recurrence: str = "auto",
        sequence_length: int | None = None,
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        whole_number("model.core.num_layers", num_layers)
        one_of("model.core.block", block, ("glu", "none"))
        self.dropout = share("model.core.dropout", dropout)
        self.recurrence = one_of("recurrence", recurrence, LOOPS)
        self.input_map = nn.Linear(input_size, hidden_size)
        asks = getattr(getattr(layer, "func", layer), "asks_sequence_length", False)
        facts = {"sequence_length": sequence_length} if asks else {}
        self.blocks = nn.ModuleList(
            Block(layer(hidden_size=hidden_size, **facts), hidden_size, block == "glu", dropout)
            for _ in range(num_layers)
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Those of the layers."""
        return [group for block in self._all() for group in block.layer.parameter_groups()]

    @property
    def is_deterministic(self) -> bool:
        """Where there is no dropout."""
        return not self.dropout

    @property
    def output_size(self) -> int:
        """H."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """The layers' in all."""
        return sum(block.layer.state_size for block in self._all())

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Silence in every layer."""
        return tuple(block.layer.initial_state(batch_size) for block in self._all())

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step: (B, I) and a state a layer -> (B, H) and the next states."""
        features, after = self.input_map(inputs), []
        for block, before in zip(self._all(), state, strict=True):
            mixed, now = block.layer.step(block.before(features), before)
            features = block.after(features, mixed)
            after.append(now)
        return features, tuple(after)

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence: inputs (B, T, I) -> (B, T, H), or (B, H) with `last_only`; and the last states."""
        if self.recurrence == "reference":
            return super().forward(inputs, state, last_only=last_only)
        features, after = self.input_map(inputs), []
        for block, before in zip(self._all(), state or [None] * len(self.blocks), strict=True):
            mixed, now = block.layer(block.before(features), before)
            features = block.after(features, mixed)
            after.append(now)
        return (features[:, -1] if last_only else features), tuple(after)

    def _all(self) -> list["Block"]:
        return [block for block in self.blocks if isinstance(block, Block)]


class Block(nn.Module):
    """What stands around a layer; nothing if it is alone."""

    def __init__(self, layer: Layer, size: int, glu: bool, dropout: float) -> None:
        super().__init__()
        self.layer, self.glu, self.dropout = layer, glu, dropout
        if glu:
            self.norm = nn.LayerNorm(size)
            self.mix = nn.Linear(size, 2 * size)

    def before(self, features: Tensor) -> Tensor:
        """What the layer gets, (..., H)."""
        return self.norm(features) if self.glu else features

    def after(self, features: Tensor, mixed: Tensor) -> Tensor:
        """What the block gives, from its input and the layer's output, each (..., H)."""
        if not self.glu:
            return mixed
        gated = F.glu(self.mix(F.gelu(mixed)), dim=-1)
        return features + F.dropout(gated, self.dropout, self.training)


def causal_filter(features: Tensor, kernel: Tensor) -> Tensor:
    """Filter each feature by its own kernel through the FFT, y_t = sum_l kernel_l features_{t-l}.

    Shape: features (B, T, H), kernel (H, L) -> (B, T, H). Values round to about 1e-7 of the largest
    in float32, as those of an FFT do.
    """
    steps = features.shape[1]
    size = 2 * steps
    spectrum = torch.fft.rfft(features.transpose(1, 2), n=size) * torch.fft.rfft(kernel[:, :steps], n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :steps].transpose(1, 2)
