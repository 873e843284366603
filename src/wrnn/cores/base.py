"""The contract of a recurrent core.

B batch, T time, I input features, O output features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wrnn.checks import one_of
from wrnn.recurrence import BACKENDS, states_to_keep

State = Tensor | tuple[Tensor, ...]
LOOPS = (*BACKENDS, "compile")
"""How a core without a kernel of its own may be told to compute: `reference` is the loop over `step`, `compile` the
same loop over a step from `torch.compile`; every other word means the fastest form in plain torch."""
MAPPED_AT_ONCE = 2**27
"""For how many bytes of state a `LoopCore` maps inputs in one go: for all steps if it is small. All steps of 4,096
oscillators, for 1,000 sequences of 784 pixels, would take 13 GB."""
KEPT_A_STEP = 4
"""How many times its state a `LoopCore` keeps of each step for the backward, roughly."""


@dataclass(frozen=True)
class ParameterGroup:
    """Weights of a core that an optimizer treats apart.

    Args:
        parameters: those weights.
        lr_scale: their learning rate as a multiple of the run's.
        weight_decay: theirs; None is the run's.
    """

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None


class Core(nn.Module, ABC):
    """A recurrent core: state in, state out, nothing remembered between calls.

    A subclass implements `initial_state`, `step`, `output_size` and `state_size`; `forward` is the loop over `step`
    until the subclass has a faster one that agrees with it. `LoopCore` is for a core whose inputs can be mapped for all
    steps at once, `WholeSequenceCore` for one that has no step.
    """

    can_be_recorded: ClassVar[bool] = True
    """Whether CUDA graphs can hold a step: nothing in it waits for the GPU."""
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

    @property
    def is_deterministic(self) -> bool:
        """Whether an output depends on the sequence and the weights alone, in training too.

        It does not with dropout, or statistics over the batch.
        """
        return True

    def input_parameters(self) -> Iterable[nn.Parameter]:
        """The weights between the inputs and the recurrence, for `model.frozen`: those of `input_map`, if there is one.

        All others are the recurrence.
        """
        encoder = getattr(self, "input_map", None)
        return encoder.parameters() if isinstance(encoder, nn.Module) else ()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Weights that want a learning rate or a decay of their own; all others have the optimizer's."""
        return []

    def constrain_(self) -> None:
        """Bring weights back into their range; called after every step of the optimizer."""

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


@contextmanager
def evaluated(core: Core) -> Iterator[Tensor]:
    """A core in evaluation mode, to look at: dropout draws nothing, and normalisation does not count what it sees.

    Yields a tensor of the type and on the device of its weights, as inputs are to be.
    """
    training = [part for part in core.modules() if part.training]
    core.eval()
    try:
        yield next(iter((*core.parameters(), *core.buffers())), torch.empty(0))
    finally:
        for part in training:
            part.training = True


class LoopCore(Core):
    """A core whose inputs are mapped for many steps at once, outside the loop: step(x) = advance(drive(x)).

    A subclass implements `advance`, has an `input_map` or its own `drive`, and `matrices` if its loop uses what is
    derived from weights; those are derived once a sequence. Its state is `num_states` tensors (B, N), and readouts see
    the first of them; a core with another state says so in `initial_state`, `state_size` and `read`.
    """

    num_states: ClassVar[int] = 1
    hidden_size: int
    recurrence: str = "auto"
    _compiled: Callable[..., Any] | None = None

    def use(self, recurrence: str) -> None:
        """Set how the loop is computed, one of LOOPS. Raises: ValueError for another word."""
        self.recurrence = one_of("recurrence", recurrence, LOOPS)
        self._compiled = None

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """N for each of the state's tensors."""
        return self.num_states * self.hidden_size

    def initial_state(self, batch_size: int) -> State:
        """Silence, or rest: zeros (B, N), or as many of them as the state has tensors."""
        zeros = next(self.parameters()).new_zeros(batch_size, self.hidden_size)
        return zeros if self.num_states == 1 else (zeros,) * self.num_states

    def drive(self, inputs: Tensor) -> Tensor:
        """What the inputs add to each step: (..., I) -> (..., D)."""
        encoder = self.get_submodule("input_map")
        driven: Tensor = encoder(inputs)
        return driven

    def matrices(self) -> tuple[Tensor, ...]:
        """What a step needs of the weights beyond the weights themselves."""
        return ()

    @abstractmethod
    def advance(self, drive: Tensor, state: Any, *matrices: Tensor) -> State:
        """One step from its drive (B, D): the next state."""

    def read(self, state: Any) -> Tensor:
        """What a readout sees of a state, (B, O)."""
        return _parts(state)[0]

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: (B, I) and a state -> outputs (B, O) and the next state."""
        state = self.advance(self.drive(inputs), state, *self.matrices())
        return self.read(state), state

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence: inputs (B, T, I) -> outputs (B, T, O), or (B, O) with `last_only`; and the last state."""
        if self.recurrence == "reference":
            return super().forward(inputs, state, last_only=last_only)
        if state is None:
            state = self.initial_state(inputs.shape[0])
        matrices, bytes_a_step = self.matrices(), sum(part.nbytes for part in _parts(state))
        steps, run = max(1, MAPPED_AT_ONCE // bytes_a_step), self._run
        if torch.is_grad_enabled():
            every = states_to_keep(inputs.shape[1], KEPT_A_STEP * bytes_a_step, inputs.device)
            if every > 1:
                steps = min(steps, every)
                run = partial(checkpoint, self._run, use_reentrant=False, preserve_rng_state=False)
        outputs: list[Tensor] = []
        for part_BTI in inputs.split(steps, dim=1):
            more, state = run(part_BTI, state, matrices, last_only)
            outputs += more
        return (self.read(state) if last_only else torch.stack(outputs, dim=1)), state

    def _run(
        self, inputs: Tensor, state: State, matrices: tuple[Tensor, ...], last_only: bool
    ) -> tuple[list[Tensor], State]:
        """Some steps: inputs (B, T, I) -> the outputs (B, O) of each, if they are wanted, and the state after them."""
        outputs: list[Tensor] = []
        advance = self._advance()
        for drive_BD in self.drive(inputs).unbind(1):
            state = advance(drive_BD, state, *matrices)
            if not last_only:
                outputs.append(self.read(state))
        return outputs, state

    def _advance(self) -> Callable[..., State]:
        if self.recurrence != "compile":
            return self.advance
        if self._compiled is None:
            self._compiled = torch.compile(self.advance)
        return self._compiled


def _parts(state: State) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


class WholeSequenceCore(Core):
    """A core that needs a sequence at once: it implements `forward`, carries nothing over and has no step."""

    @property
    def state_size(self) -> int:
        """Nothing is carried over."""
        return 0

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """No state."""
        return ()

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Raise NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} sees whole sequences only; call it on one")
