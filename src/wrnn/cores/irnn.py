"""The identity RNN: a dense ReLU recurrence that starts by holding its activity in place.

    h_t = phi(U h_{t-1} + V x_t + b_V + b_U)

Two biases, as in the Wave-RNN paper's code; only their sum acts. With U = I and a random b_V, as released, a unit
grows like b_V * t before anything is learned; Le et al. start every bias at 0.
Source: Le, Jaitly, Hinton 2015; the baseline of Keller et al. 2024.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import one_of, whole_number
from wrnn.cores.base import Core, State
from wrnn.inits import Initializer, identity_, normal_
from wrnn.recurrence import BACKENDS, NONLINEARITIES, dense_recurrence

# B batch, T time, I input features, N neurons


class IdentityRNN(Core):
    """A simple RNN with dense recurrence; the defaults are those of Le et al.

    Args:
        input_size: I.
        hidden_size: N.
        nonlinearity: relu, tanh or identity.
        init: start of U and b_U.
        input_init: start of V and b_V; for the sparse starts the whole state is one channel.
        recurrence: how the time loop is computed, see `wrnn.recurrence.dense_recurrence`.

    Raises: ValueError for a size or a start that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        nonlinearity: str = "relu",
        init: Initializer = Initializer(identity_),
        input_init: Initializer = Initializer(normal_),
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size = whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.nonlinearity = one_of("model.core.nonlinearity", nonlinearity, NONLINEARITIES)
        self.init, self.input_init = init, input_init
        self.recurrence = one_of("recurrence", recurrence, BACKENDS)
        self.input_map = nn.Linear(input_size, hidden_size)
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Apply both starts anew."""
        self.init(self.weight, self.bias, fan_in=self.hidden_size)
        self.input_init(self.input_map.weight[None], self.input_map.bias, fan_in=self.input_size)

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """N."""
        return self.hidden_size

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: zeros (B, N)."""
        return self.weight.new_zeros(batch_size, self.hidden_size)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """One step: (B, I) and (B, N) -> outputs and state, both (B, N)."""
        assert isinstance(state, Tensor)
        state_BN = NONLINEARITIES[self.nonlinearity](state @ self.weight.T + self.bias + self.input_map(inputs))
        return state_BN, state_BN

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, Tensor]:
        """A whole sequence: inputs (B, T, I) -> (B, T, N), or (B, N) with `last_only`; and the last state (B, N)."""
        if state is None:
            state = self.initial_state(inputs.shape[0])
        assert isinstance(state, Tensor)
        last, states = dense_recurrence(
            inputs,
            self.input_map.weight,
            self.input_map.bias + self.bias,
            self.weight,
            state,
            nonlinearity=self.nonlinearity,
            wants="last" if last_only else "states",
            backend=self.recurrence,
        )
        return last if states is None else states, last
