"""The Wave-RNN: rings of neurons on which activity travels.

    h_t = phi(u * h_{t-1} + V x_t + b_V + b_u)

h: C circular channels of N neurons; u: a kernel (C, C, K), * the cross-correlation around the ring, shared by all
neurons of a channel; V: the input map. With the paper's start every channel is a conveyor belt: what V writes to
neuron 0 moves one neuron a step towards lower indices, 0 -> N-1 -> N-2.
Source: Keller, Muller, Sejnowski, Welling, ICLR 2024, section 2 and appendix B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import odd_kernel, one_of, whole_number
from wrnn.cores.base import Core, State
from wrnn.inits import Initializer, ones_, shift_
from wrnn.recurrence import BACKENDS, NONLINEARITIES, Sequence, choose, ring_recurrence

# B batch, T time, I input features, C channels, N neurons per channel, K kernel taps


class TravelingWaveRNN(Core):
    """Rings with a shared local kernel; the defaults are the paper's image models without Hydra.

    Args:
        input_size: I.
        num_channels: C, rings that the kernel mixes.
        ring_size: N, neurons per ring.
        kernel_size: K, odd and at most N.
        nonlinearity: relu, tanh or identity.
        init: start of the kernel and of b_u, one number a channel.
        input_init: start of V and of b_V, one number a neuron.
        recurrence: how the time loop is computed, see `wrnn.recurrence.BACKENDS`.
        store_every: keep every K-th state for the backward, see `ring_recurrence`; None chooses.

    Raises: ValueError for a size or a start that makes no sense.
    """

    uses_shared_inputs = True

    def __init__(
        self,
        input_size: int,
        num_channels: int = 16,
        ring_size: int = 256,
        kernel_size: int = 3,
        nonlinearity: str = "relu",
        init: Initializer = Initializer(shift_),
        input_init: Initializer = Initializer(ones_),
        recurrence: str = "auto",
        store_every: int | None = None,
    ) -> None:
        super().__init__()
        self.input_size = whole_number("input_size", input_size)
        self.num_channels = whole_number("model.core.num_channels", num_channels)
        self.ring_size = whole_number("model.core.ring_size", ring_size)
        self.kernel_size = odd_kernel(kernel_size, ring_size, "model.core.ring_size")
        self.nonlinearity = one_of("model.core.nonlinearity", nonlinearity, NONLINEARITIES)
        self.init, self.input_init = init, input_init
        self.recurrence = one_of("recurrence", recurrence, BACKENDS)
        self.store_every = None if store_every is None else whole_number("store_every", store_every)
        self.input_map = nn.Linear(input_size, num_channels * ring_size)
        self.kernel = nn.Parameter(torch.empty(num_channels, num_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Apply both starts anew."""
        self.init(self.kernel, self.bias, fan_in=self.num_channels * self.kernel_size)
        self.input_init(self._input_weight_CNI(), self.input_map.bias, fan_in=self.input_size)

    @property
    def output_size(self) -> int:
        """C * N: the rings, one after the other."""
        return self.num_channels * self.ring_size

    @property
    def state_size(self) -> int:
        """C * N."""
        return self.output_size

    @property
    def ring_shape(self) -> tuple[int, int]:
        """(C, N)."""
        return self.num_channels, self.ring_size

    def check_device(self, device: torch.device) -> None:
        """See `Core`; says how the time loop will run."""
        choose(self.recurrence, self.bias[:, None].expand(self.ring_shape).to(device), self.kernel.to(device))

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: zeros (B, C, N)."""
        return self.kernel.new_zeros(batch_size, self.num_channels, self.ring_size)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """One step: (B, I) and (B, C, N) -> outputs (B, C*N) and the state (B, C, N)."""
        assert isinstance(state, Tensor)
        drive_BCN = self.input_map(inputs).unflatten(-1, self.ring_shape)
        halo = self.kernel_size // 2
        around_BCN = F.conv1d(F.pad(state, (halo, halo), mode="circular"), self.kernel, self.bias)
        state_BCN = NONLINEARITIES[self.nonlinearity](around_BCN + drive_BCN)
        return state_BCN.flatten(1), state_BCN

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        *,
        last_only: bool = False,
        shared_from: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A whole sequence: inputs (B, T, I) -> (B, T, C*N), or (B, C*N) with `last_only`; and the state (B, C, N).

        From step `shared_from` on, the inputs of the first sequence stand for those of all: their drive is computed
        once. Inputs that need a gradient are taken one by one all the same.
        """
        pieces = [inputs]
        if shared_from is not None and 0 < shared_from < inputs.shape[1] and not inputs.requires_grad:
            pieces = [inputs[:, :shared_from], inputs[:1, shared_from:]]
        states = []
        for piece in pieces:
            state, states_BTCN = self._run(piece, len(inputs), state, None, "last" if last_only else "states")
            states.append(states_BTCN)
        assert isinstance(state, Tensor)
        if last_only:
            return state.flatten(1), state
        all_BTCN = states[0] if len(states) == 1 else torch.cat([part for part in states if part is not None], dim=1)
        assert all_BTCN is not None
        return all_BTCN.flatten(-2), state

    def read_every_step(self, inputs: Tensor, readout: nn.Module) -> Tensor:
        """See `Core`; a linear readout is part of the time loop."""
        if not isinstance(readout, nn.Linear):
            return super().read_every_step(inputs, readout)
        weight_OCN = readout.weight.unflatten(1, self.ring_shape)
        _, read_BTO = self._run(inputs, len(inputs), None, weight_OCN, "readout")
        assert read_BTO is not None
        return read_BTO if readout.bias is None else read_BTO + readout.bias

    def _run(
        self, inputs: Tensor, batch_size: int, state: State | None, readout: Tensor | None, wants: str
    ) -> Sequence:
        if state is None:
            state = self.initial_state(batch_size)
        assert isinstance(state, Tensor)
        return ring_recurrence(
            inputs,
            self._input_weight_CNI(),
            self.input_map.bias.view(self.ring_shape) + self.bias[:, None],
            self.kernel,
            state,
            readout,
            nonlinearity=self.nonlinearity,
            wants=wants,
            backend=self.recurrence,
            store_every=self.store_every,
        )

    def _input_weight_CNI(self) -> Tensor:
        return self.input_map.weight.view(self.num_channels, self.ring_size, self.input_size)
