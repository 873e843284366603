"""IndRNN: layers of units that see only their own past, with batch normalisation between the layers.

    a_t = W x_t + b        h_t = ReLU(a_t + u h_{t-1})        |u| <= 5^(1/T)

After each layer: normalisation over batch and time, then dropout with one mask for all steps.
In training the statistics are those of all steps of a batch, so only whole sequences are meant; in evaluation those
that were learned, and a step at a time gives the same.
Source: Li et al. 2018 and their released code for pixel MNIST.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import one_of, share, whole_number
from wrnn.cores.base import Core, ParameterGroup, State

# B batch, T time, I input features, N units


class IndependentRNN(Core):
    """A stack of IndRNN layers.

    Args:
        input_size: I.
        sequence_length: T of the task, which sets the limit of u.
        hidden_size: N, in every layer.
        num_layers: how many.
        dropout: share of units that are off in training, in [0, 1).
        last_layer_init: `broken` starts u of the last layer like the others, at U(0, 5^(1/T)), as the released code
            does; `intended` at U(5^(-1/T), 5^(1/T)), as it was meant to.

    Raises: ValueError for a size or a choice that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        sequence_length: int,
        hidden_size: int = 128,
        num_layers: int = 6,
        dropout: float = 0.1,
        last_layer_init: str = "broken",
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.limit = 5 ** (1 / whole_number("sequence_length", sequence_length))
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        whole_number("model.core.num_layers", num_layers)
        self.dropout = share("model.core.dropout", dropout)
        one_of("model.core.last_layer_init", last_layer_init, ("broken", "intended"))
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        maps = [nn.Linear(size, hidden_size) for size in sizes]
        self.maps = nn.ModuleList(maps)
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden_size) for _ in sizes)
        self.weights = nn.ParameterList(torch.empty(hidden_size) for _ in sizes)
        for linear, u in zip(maps, self.weights, strict=True):
            nn.init.kaiming_uniform_(linear.weight, a=8)
            nn.init.zeros_(linear.bias)
            nn.init.uniform_(u, 0, self.limit)
        if last_layer_init == "intended":
            nn.init.uniform_(self.weights[-1], 1 / self.limit, self.limit)

    def input_parameters(self) -> list[nn.Parameter]:
        """The first layer's map."""
        return list(self.maps[0].parameters())

    def parameter_groups(self) -> list[ParameterGroup]:
        """U and biases never decay."""
        biases = [weight for name, weight in self.named_parameters() if name.endswith("bias")]
        return [ParameterGroup((*self.weights, *biases), weight_decay=0.0)]

    @torch.no_grad()
    def constrain_(self) -> None:
        """Keep |u| within its limit."""
        for u in self.weights:
            u.clamp_(-self.limit, self.limit)

    @property
    def is_deterministic(self) -> bool:
        """False: it is normalised over the batch."""
        return False

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """N a layer."""
        return self.hidden_size * len(self.weights)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Silence: zeros (B, N) a layer."""
        return tuple(u.new_zeros(batch_size, self.hidden_size) for u in self.weights)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step in evaluation mode: (B, I) and (B, N) a layer -> (B, N) and the next states."""
        outputs, after = self.forward(inputs[:, None], state)
        return outputs[:, 0], after

    def forward(
        self, inputs: Tensor, state: State | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A whole sequence: inputs (B, T, I) -> (B, T, N), or (B, N) with `last_only`; and the last states."""
        features, after = inputs, []
        befores = self.initial_state(len(inputs)) if state is None else state
        for linear, norm, u, before in zip(self.maps, self.norms, self.weights, befores, strict=True):
            states = []
            for drive_BN in linear(features).unbind(1):
                before = torch.relu(torch.addcmul(drive_BN, u, before))
                states.append(before)
            after.append(before)
            features = norm(torch.stack(states, dim=1).transpose(1, 2)).transpose(1, 2)
            if self.training and self.dropout:
                features = features * F.dropout(torch.ones_like(features[:, :1]), self.dropout)
        return (features[:, -1] if last_only else features), tuple(after)
