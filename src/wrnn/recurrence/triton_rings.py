"""The recurrence on rings by the Triton kernels: float32 on a CUDA GPU.

The kernels know states as (slot, sequence, neuron, channel), channels padded; here the caller's tensors are brought
into that layout, time is cut into segments, and all that is one large product over the steps of a segment (drives of
more than two inputs, readouts at every step, their gradients, gradients to the inputs) is left to torch.

Axes: B batch, T time, I input features, C channels, N neurons per ring, K taps, O outputs of a readout, P channels
padded to a power of two of at least 16.
"""

import math
import os
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OLDEST_TRITON, OLDEST_GPU = (3, 3), (8, 0)
MOST_TAPS, MOST_CHANNELS, MOST_NUMBERS = 9, 64, 16384
"""Beyond these, the registers of a multiprocessor no longer hold a state and the kernel's weights."""

FEW_FEATURES = 2
"""So many input features enter the kernel itself."""

SEGMENT_BYTES = 2**28
"""A segment's drives and gradients take at most about this much memory each."""


def misfit(like: Tensor) -> str | None:
    """Return why the kernels are not for tensors like this one, or None."""
    if like.dtype == torch.float32 and (like.is_cuda or _interpreted()):
        return None
    return f"runs float32 on a CUDA GPU, not {like.dtype} on {like.device.type}"


def problem(bias: Tensor, kernel: Tensor) -> str | None:
    """Return why the kernels cannot run rings of this size here, or None."""
    kernels = _kernels()
    if isinstance(kernels, str):
        return kernels
    if bias.is_cuda and torch.cuda.get_device_capability(bias.device) < OLDEST_GPU:
        name = torch.cuda.get_device_name(bias.device)
        return f"{name} is older than compute capability {_dotted(OLDEST_GPU)}"
    (channels, neurons), taps = bias.shape, kernel.shape[-1]
    numbers = padded_size(channels) * padded_size(neurons)
    if taps > MOST_TAPS or channels > MOST_CHANNELS or numbers > MOST_NUMBERS:
        return (
            f"{channels} channels of {neurons} neurons with {taps} taps do not fit the chip: at most {MOST_CHANNELS} "
            f"channels, {MOST_TAPS} taps and, both sizes padded to powers of two, {MOST_NUMBERS} numbers a state"
        )
    needed = 4 * taps * numbers + 4 * taps * padded_size(channels) ** 2  # the tile at each shift, and the weights
    properties: Any = torch.cuda.get_device_properties(bias.device) if bias.is_cuda else None
    if properties and needed > properties.shared_memory_per_block_optin:
        return f"{channels} channels of {neurons} neurons with {taps} taps need {needed} bytes of shared memory"
    return None


def describe(like: Tensor) -> str:
    """Where the kernels run."""
    if not like.is_cuda:
        return "interpreted, to test it"
    return f"on {torch.cuda.get_device_name(like.device)}, tuned at the first use of a size (some seconds)"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernels() -> ModuleType | str:
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < OLDEST_TRITON:
        return f"triton {triton.__version__} is older than {_dotted(OLDEST_TRITON)}"
    from wrnn.recurrence import triton_kernels  # late: defining them asks for triton

    return triton_kernels


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def padded_size(size: int) -> int:
    """How many channels, or neurons, the kernels see."""
    return max(16, 1 << (size - 1).bit_length())


def kept_numel(inputs: Tensor, bias: Tensor, kernel: Tensor, state: Tensor, every: int) -> int:
    """How many numbers the backward needs."""
    steps, (channels, neurons) = inputs.shape[1], bias.shape
    return state.shape[0] * neurons * padded_size(channels) * (steps + 1 if every == 1 else -(-steps // every))


class _Rings:
    """Sizes, weights in the kernels' layout, and the launches."""

    def __init__(
        self,
        inputs: Tensor,
        input_weight: Tensor | None,
        bias: Tensor,
        kernel: Tensor,
        state: Tensor,
        readout: Tensor | None,
        nonlinearity: str,
    ) -> None:
        self.kernels: Any = _kernels()
        self.inputs, self.num_steps, self.num_features = inputs, inputs.shape[1], 0
        self.channels, self.neurons = bias.shape
        self.batch, self.taps, self.pad = state.shape[0], kernel.shape[-1], padded_size(self.channels) - self.channels
        self.shares = inputs.shape[0] < self.batch
        self.slot_shape = (self.batch, self.neurons, self.channels + self.pad)
        self.bias_NP = self.layout(bias)
        self.kernel_KPP = F.pad(kernel.permute(2, 1, 0), (0, self.pad, 0, self.pad)).contiguous()  # channel in, out
        self.few_weight_INP = self.weight_IM = None
        if input_weight is not None:
            weight_INP = self.layout(input_weight.permute(2, 0, 1))
            self.num_features, self.weight_IM = inputs.shape[-1], weight_INP.flatten(1)
            self.few_weight_INP = weight_INP if self.num_features <= FEW_FEATURES else None
        self.readout_OM = None if readout is None else self.layout(readout).flatten(1)
        self.options: dict[str, Any] = {
            "GPU": torch.cuda.get_device_name(state.device) if state.is_cuda else "",
            "EXACT": self.neurons == padded_size(self.neurons),
            "FEATURES": 0 if self.few_weight_INP is None else self.num_features,
            "NONLINEARITY": nonlinearity,
            "TAPS": self.taps,
            "N": padded_size(self.neurons),
            "C": self.channels + self.pad,
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        }

    def layout(self, tensor_CN: Tensor) -> Tensor:
        """(..., C, N) -> (..., N, P), contiguous, the padding zero."""
        return F.pad(tensor_CN.mT, (0, self.pad)).contiguous()

    def public(self, tensor_NP: Tensor) -> Tensor:
        """View (..., N, P) as (..., C, N)."""
        return tensor_NP[..., : self.channels].mT

    def slots(self, number: int) -> Tensor:
        """New memory for states."""
        return self.bias_NP.new_empty(number, *self.slot_shape)

    def segments(self, every: int, buffers: bool) -> list[tuple[int, int]]:
        """Start and stop of the pieces that time is cut into: every K steps, or as many as `buffers` may hold."""
        longest = every if every > 1 else self.num_steps
        if every <= 1 and buffers:
            longest = max(1, SEGMENT_BYTES // (4 * math.prod(self.slot_shape)))
        return [(start, min(start + longest, self.num_steps)) for start in range(0, self.num_steps, longest)]

    def flat_inputs(self, start: int, stop: int) -> Tensor:
        """(steps * B, I)."""
        return self.inputs[:, start:stop].transpose(0, 1).flatten(0, 1)

    def _given(self, start: int, stop: int) -> tuple[Tensor | None, Tensor | None]:
        """What drives these steps: inputs for the kernel, or the finished drive (steps, B or 1, N, P)."""
        if self.few_weight_INP is not None:
            return self.inputs[:, start:stop], None
        if self.weight_IM is not None:
            return None, (self.flat_inputs(start, stop) @ self.weight_IM).view(-1, *self.slot_shape)
        drive_TBCN = self.inputs[:, start:stop].transpose(0, 1).unflatten(-1, (self.channels, self.neurons))
        return None, self.layout(drive_TBCN)

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Start a kernel, one program a sequence, on the device of the tensors."""
        with torch.cuda.device_of(self.bias_NP):
            kernel[(self.batch,)](*arguments, **constants, **self.options)

    def advance(self, slots: Tensor, start: int, stop: int) -> Tensor:
        """Run the steps from slot 0 on, the states going around the other slots; return a view of the last one."""
        x, drive = self._given(start, stop)
        turns = len(slots) - 1
        self.launch(
            self.kernels.advance,
            x, self.few_weight_INP, drive, self.bias_NP, self.kernel_KPP, slots,
            stop - start, self.neurons, self.batch, turns, *self.inputs.stride(), SHARED=self.shares,
        )  # fmt: skip
        return slots[1 + (stop - start - 1) % turns]


class _Gradients:
    """Sums over sequences and segments of the gradients somebody needs; the kernel adds to three of them."""

    def __init__(self, rings: _Rings, needed: list[bool]) -> None:
        self.rings = rings
        new_zeros, features, square = rings.bias_NP.new_zeros, rings.options["FEATURES"], rings.kernel_KPP.shape
        self.need_inputs, self.need_weight, _, self.need_kernel, _, self.need_readout = needed
        self.bias_BNP = new_zeros(rings.slot_shape)
        self.kernel_BKPP = new_zeros(rings.batch, *(square if self.need_kernel else (0,)))
        self.few_weight_BINP = new_zeros(rings.batch, features, *rings.slot_shape[1:])
        self.weight_IM = self.readout_OM = self.inputs = None
        if self.need_weight and not features:
            assert rings.weight_IM is not None
            self.weight_IM = torch.zeros_like(rings.weight_IM)
        if self.need_readout:
            assert rings.readout_OM is not None
            self.readout_OM = torch.zeros_like(rings.readout_OM)
        if self.need_inputs:
            self.inputs = torch.empty_like(rings.inputs)
        self.keeps_drive = self.need_inputs or self.weight_IM is not None

    def go_back(
        self, slots: Tensor, start: int, stop: int, grad_last: Tensor, outer_TBX: Tensor | None, adjoint_KPP: Tensor
    ) -> Tensor:
        """Add the shares of these steps, whose states are in `slots`; return the gradient of the first of these.

        `outer_TBX`: gradients of the readout (steps, B, O) or, without one, of the states (steps, B, C, N).
        """
        rings, steps = self.rings, stop - start
        grad_first = torch.empty_like(grad_last)
        grad_drive = rings.slots(steps if self.keeps_drive else 2)
        grad_states = None
        if outer_TBX is not None and rings.readout_OM is not None:
            outer_RO = outer_TBX.flatten(0, 1)
            grad_states = outer_RO @ rings.readout_OM
            if self.readout_OM is not None:
                self.readout_OM.addmm_(outer_RO.t(), slots[1:].flatten(0, 1).flatten(1))
        elif outer_TBX is not None:
            grad_states = rings.layout(outer_TBX)
        x = rings.inputs[:, start:stop] if rings.options["FEATURES"] else None
        rings.launch(
            rings.kernels.go_back,
            x, grad_last, grad_states, adjoint_KPP, slots, grad_first, grad_drive,
            self.few_weight_BINP, self.bias_BNP, self.kernel_BKPP,
            steps, rings.neurons, rings.batch, len(grad_drive), *rings.inputs.stride(),
            SUMS_KERNEL=self.need_kernel,
        )  # fmt: skip
        if self.weight_IM is not None:
            self.weight_IM.addmm_(rings.flat_inputs(start, stop).t(), grad_drive.flatten(0, 1).flatten(1))
        if self.inputs is not None:
            if rings.weight_IM is not None:
                given_TBI = grad_drive.flatten(2) @ rings.weight_IM.t()
            else:
                summed = grad_drive.sum(1, keepdim=True) if rings.shares else grad_drive
                given_TBI = rings.public(summed).flatten(2)
            self.inputs[:, start:stop].copy_(given_TBI.transpose(0, 1))
        return grad_first

    def results(self) -> list[Tensor | None]:
        """Gradients of inputs, input_weight, bias, kernel and readout in the shapes of these."""
        rings, shape_NP = self.rings, self.rings.slot_shape[1:]
        weight_INP = None if self.weight_IM is None else self.weight_IM.unflatten(1, shape_NP)
        if rings.options["FEATURES"]:
            weight_INP = self.few_weight_BINP.sum(0)
        kernel_KCC = self.kernel_BKPP.sum(0)[:, : rings.channels, : rings.channels] if self.need_kernel else None
        return [
            self.inputs,
            None if weight_INP is None else rings.public(weight_INP).permute(1, 2, 0),
            rings.public(self.bias_BNP.sum(0)),
            None if kernel_KCC is None else kernel_KCC.permute(2, 1, 0),
            None if self.readout_OM is None else rings.public(self.readout_OM.unflatten(1, shape_NP)),
        ]


def forward(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None,
    nonlinearity: str,
    wants: str,
    every: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.ring`."""
    rings = _Rings(inputs, input_weight, bias, kernel, state, readout, nonlinearity)
    keeps_all = every == 1 and wants != "states"
    segments = rings.segments(every, buffers=rings.few_weight_INP is None or (wants != "last" and not keeps_all))
    kept = rings.slots(0)
    if every and wants != "states":
        kept = rings.slots(rings.num_steps + 1 if keeps_all else len(segments))
    turns = 2 if wants == "last" else segments[0][1]
    around = kept if keeps_all else rings.slots(1 + turns)
    around[0].copy_(rings.layout(state))
    every_step = state.new_empty(0)
    if wants != "last":
        every_step = state.new_empty(
            rings.batch, rings.num_steps, *(bias.shape if readout is None else readout.shape[:1])
        )
    last = around[0]
    for index, (start, stop) in enumerate(segments):
        if keeps_all:
            slots = kept[start : stop + 1]
        else:
            slots = around if wants == "last" else around[: stop - start + 1]
            if index:
                slots[0].copy_(last)
            if every > 1:
                kept[index].copy_(slots[0])
        last = rings.advance(slots, start, stop)
        if wants != "last":
            found = slots[1:]
            values = rings.public(found) if rings.readout_OM is None else found.flatten(2) @ rings.readout_OM.t()
            every_step[:, start:stop].copy_(values.transpose(0, 1))
    last = rings.public(last).clone(memory_format=torch.contiguous_format)  # of one number a view would be it
    return last, every_step, kept.view(-1)


def backward(
    grad_last: Tensor | None,
    grad_every_step: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    kept: Tensor,
    nonlinearity: str,
    wants: str,
    every: int,
    needed: list[bool],
) -> list[Tensor | None]:
    """See `ops.ring_backward`."""
    inputs, input_weight, bias, kernel, state, readout = tensors
    assert inputs is not None and bias is not None and kernel is not None and state is not None
    rings = _Rings(inputs, input_weight, bias, kernel, state, readout, nonlinearity)
    sums = _Gradients(rings, needed)
    keeps_all = every == 1 and wants != "states"
    segments = rings.segments(every, buffers=not keeps_all or sums.keeps_drive or grad_every_step is not None)
    around = rings.slots(0 if keeps_all else segments[0][1] + 1)
    kept_SBNP = kept if wants == "states" else kept.view(-1, *rings.slot_shape)
    adjoint_KPP = rings.kernel_KPP.mT.contiguous()
    gradient = state.new_zeros(rings.slot_shape) if grad_last is None else rings.layout(grad_last)
    for index, (start, stop) in reversed(list(enumerate(segments))):
        if keeps_all:
            slots = kept_SBNP[start : stop + 1]
        else:
            slots = around[: stop - start + 1]
            if wants == "states":
                slots[0].copy_(rings.layout(kept[:, start - 1] if start else state))
                slots[1:].copy_(rings.layout(kept[:, start:stop].transpose(0, 1)))
            else:
                slots[0].copy_(kept_SBNP[index])
                rings.advance(slots, start, stop)
        outer = None if grad_every_step is None else grad_every_step[:, start:stop].transpose(0, 1)
        gradient = sums.go_back(slots, start, stop, gradient, outer, adjoint_KPP)
    *found, found_readout = sums.results()
    every_gradient = [*found, rings.public(gradient), found_readout]
    return [g.contiguous() if g is not None and need else None for g, need in zip(every_gradient, needed, strict=True)]
