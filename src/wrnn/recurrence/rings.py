"""The recurrence on rings in plain torch, with a backward by hand: no compiler needed, any device.

- Layout. A state is stored as (ring position, channel, sample), the sample innermost, and a ring carries K//2 positions
  of its other end on both sides (the halo, two small copies a step). The K neighbours of a position are then one block
  of K*C rows, blocks of successive positions overlap, and the whole convolution is one batched matrix product
  (C, K*C) x (K*C, B) over positions, on a strided view: no copies of the state, no separate products for the taps.
  Its adjoint (taps flipped, channels swapped) and the kernel's gradient are batched products on the same views.
- Drive. V x_t + b is written where the next state will stand, just before the convolution adds to it; there is no
  (B, T, C*N) drive.
- Memory. All states are kept for the backward, or every K-th, and the others are computed again.

Axes: B batch, T time, I input features, C channels, N neurons per ring, K taps, O outputs of a readout, D = K*C,
M = N*C, W = N + K - 1 ring with halo, L lanes (B, at least 16 and a multiple of 4: products with fewer columns or odd
strides are slow), S slots (a state and those of the steps after it).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wrnn.recurrence.buffers import borrow


def _slot_shape(bias: Tensor, kernel: Tensor, state: Tensor) -> tuple[int, int, int]:
    """(W, C, L)."""
    channels, neurons = bias.shape
    return neurons + kernel.shape[-1] - 1, channels, max(16, -(-state.shape[0] // 4) * 4)


class _Layout:
    """Sizes, weights and views of the (position, channel, sample) layout, and steps through time in it."""

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
        self.nonlinearity = nonlinearity
        self.batch, self.num_steps = state.shape[0], inputs.shape[1]
        self.channels, self.neurons = bias.shape
        self.taps, self.half = kernel.shape[-1], kernel.shape[-1] // 2
        self.slot_shape = _slot_shape(bias, kernel, state)
        self.lanes = self.slot_shape[-1]
        self.slot_numel = math.prod(self.slot_shape)
        self.bias_M1 = bias.t().reshape(-1, 1)  # M = (neuron, channel)
        self.kernel_CD = kernel.transpose(1, 2).flatten(1)  # D = (tap, channel in)
        self.adjoint_CD = kernel.flip(-1).permute(1, 2, 0).flatten(1)
        self.weight_MI = None
        if input_weight is None:
            self.drives_TNCB = inputs.unflatten(-1, bias.shape).permute(1, 3, 2, 0)
        else:
            self.weight_MI = input_weight.transpose(0, 1).flatten(0, 1)
            self.inputs_TIL = F.pad(inputs.permute(1, 2, 0), (0, self.lanes - self.batch)).contiguous()
        self.readout_OM = None if readout is None else readout.transpose(1, 2).flatten(1)

    def slots(self, buffer: Tensor) -> Tensor:
        return buffer.view(-1, *self.slot_shape)

    def inner(self, slots_SWCL: Tensor) -> Tensor:
        """View (S, N, C, L): without the halo."""
        return slots_SWCL[:, self.half : self.half + self.neurons]

    def public(self, slots_SWCL: Tensor) -> Tensor:
        """View (S, B, C, N): the states as the caller knows them."""
        return self.inner(slots_SWCL)[..., : self.batch].permute(0, 3, 2, 1)

    def windows(self, slots_SWCL: Tensor) -> Tensor:
        """View (S, N, D, L): the K neighbours of every position, overlapping in memory."""
        shape = (len(slots_SWCL), self.neurons, self.taps * self.channels, self.lanes)
        stride = (self.slot_numel, self.channels * self.lanes, self.lanes, 1)
        return slots_SWCL.as_strided(shape, stride, slots_SWCL.storage_offset())

    def convolve(self, kernel_CD: Tensor, windows_NDL: Tensor, target_NCL: Tensor, add: bool) -> None:
        kernel_NCD = kernel_CD.expand(self.neurons, -1, -1)
        target_NCL.baddbmm_(kernel_NCD, windows_NDL, beta=int(add))

    def fill_halo(self, slot_WCL: Tensor) -> None:
        if self.half:
            slot_WCL[: self.half].copy_(slot_WCL[self.neurons : self.neurons + self.half])
            slot_WCL[self.neurons + self.half :].copy_(slot_WCL[self.half : 2 * self.half])

    def read(self, slots_SWCL: Tensor) -> Tensor:
        """(S, B, O): the readout of every slot."""
        assert self.readout_OM is not None
        return (self.readout_OM @ self.inner(slots_SWCL).flatten(1, 2))[..., : self.batch].mT

    def set_state(self, slot_WCL: Tensor, state_BCN: Tensor) -> None:
        self.public(slot_WCL.unsqueeze(0))[0].copy_(state_BCN)
        self.fill_halo(slot_WCL)

    def advance(self, slots_SWCL: Tensor, start: int) -> None:
        """Fill slots 1, 2, ... with the states after steps start, start + 1, ...; slot 0 holds the state before."""
        windows = self.windows(slots_SWCL).unbind(0)
        inner = self.inner(slots_SWCL).unbind(0)
        for offset, slot_WCL in enumerate(slots_SWCL.unbind(0)[1:]):
            target_NCL = inner[offset + 1]
            self.write_drive(start + offset, target_NCL)
            self.convolve(self.kernel_CD, windows[offset], target_NCL, add=True)
            if self.nonlinearity == "relu":
                target_NCL.relu_()
            elif self.nonlinearity == "tanh":
                target_NCL.tanh_()
            self.fill_halo(slot_WCL)

    def write_drive(self, step: int, target_NCL: Tensor) -> None:
        if self.weight_MI is not None:
            torch.addmm(self.bias_M1, self.weight_MI, self.inputs_TIL[step], out=target_NCL.flatten(0, 1))
        else:
            bias_NC1 = self.bias_M1.view(self.neurons, self.channels, 1)
            target_NCL[..., : self.batch].copy_(self.drives_TNCB[step]).add_(bias_NC1)  # one drive may serve all
            target_NCL[..., self.batch :].zero_()

    def through_nonlinearity(self, gradient_NCL: Tensor, state_NCL: Tensor) -> None:
        if self.nonlinearity == "relu":
            torch.ops.aten.threshold_backward.grad_input(gradient_NCL, state_NCL, 0, grad_input=gradient_NCL)
        elif self.nonlinearity == "tanh":
            torch.ops.aten.tanh_backward.grad_input(gradient_NCL, state_NCL, grad_input=gradient_NCL)


class _Gradients:
    """Sums of the gradients somebody needs, one step at a time."""

    def __init__(self, layout: _Layout, inputs: Tensor, needed: list[bool]) -> None:
        self.layout = layout
        need_inputs, need_input_weight, need_bias, need_kernel, _, need_readout = needed
        rows, depth = layout.neurons * layout.channels, layout.taps * layout.channels
        self.inputs_BTI = inputs.new_empty(inputs.shape) if need_inputs else None
        self.weight_MI = None
        if need_input_weight:  # the order of storage decides which operand the product copies: up to 4 x
            features = inputs.shape[-1]
            few = features <= 4
            self.weight_MI = inputs.new_zeros(rows, features) if few else inputs.new_zeros(features, rows).t()
        self.bias_M = inputs.new_zeros(rows) if need_bias else None
        self.kernel_NCD = inputs.new_zeros(layout.neurons, layout.channels, depth) if need_kernel else None
        self.readout_OM = None
        if need_readout and layout.readout_OM is not None:
            self.readout_OM = torch.zeros_like(layout.readout_OM)

    def add(self, step: int, gradient_NCB: Tensor, windows_NDB: Tensor) -> None:
        """Add the share of one step: its gradient before the nonlinearity and the windows of the state before it."""
        gradient_MB = gradient_NCB.flatten(0, 1)
        if self.kernel_NCD is not None:
            self.kernel_NCD.baddbmm_(gradient_NCB, windows_NDB.transpose(1, 2))
        if self.bias_M is not None:
            self.bias_M.add_(gradient_MB.sum(1))
        if self.weight_MI is not None:
            self.weight_MI.addmm_(gradient_MB, self.layout.inputs_TIL[step, :, : self.layout.batch].t())
        if self.inputs_BTI is not None:
            gradient_BI = self.inputs_BTI[:, step]
            if self.layout.weight_MI is None:
                gradient_BCN = gradient_NCB.permute(2, 1, 0)
                if len(gradient_BI) < len(gradient_BCN):
                    gradient_BCN = gradient_BCN.sum(0, keepdim=True)
                gradient_BI.unflatten(-1, (self.layout.channels, -1)).copy_(gradient_BCN)
            else:
                gradient_BI.copy_(gradient_MB.t() @ self.layout.weight_MI)

    def results(self) -> tuple[Tensor | None, ...]:
        """Gradients to inputs, input_weight, bias, kernel and readout in the shapes of these."""
        shape = (self.layout.neurons, self.layout.channels)
        input_weight = bias = kernel = readout = None
        if self.weight_MI is not None:
            input_weight = self.weight_MI.unflatten(0, shape).transpose(0, 1)
        if self.bias_M is not None:
            bias = self.bias_M.view(shape).t()
        if self.kernel_NCD is not None:
            kernel = self.kernel_NCD.sum(0).unflatten(1, (self.layout.taps, -1)).transpose(1, 2)
        if self.readout_OM is not None:
            readout = self.readout_OM.unflatten(1, shape).transpose(1, 2)
        return self.inputs_BTI, input_weight, bias, kernel, readout


def kept_numel(inputs: Tensor, bias: Tensor, kernel: Tensor, state: Tensor, every: int) -> int:
    """How many numbers the backward needs."""
    steps = inputs.shape[1]
    return math.prod(_slot_shape(bias, kernel, state)) * (steps + 1 if every == 1 else -(-steps // every))


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
    layout = _Layout(inputs, input_weight, bias, kernel, state, readout, nonlinearity)
    steps = layout.num_steps
    keeps_all = every == 1 and wants != "states"
    segment = steps if keeps_all else every if every > 1 else math.isqrt(steps)
    slots_SWCL = layout.slots(borrow(state, (segment + 1) * layout.slot_numel))
    kept_XWCL = layout.slots(borrow(state, kept_numel(inputs, bias, kernel, state, every))) if every > 1 else None
    every_step = state.new_empty(0)
    if wants != "last":
        shape = bias.shape if readout is None else (readout.shape[0],)
        every_step = state.new_empty(layout.batch, steps, *shape)
    slots_SWCL[0].zero_()
    layout.set_state(slots_SWCL[0], state)
    for index, start in enumerate(range(0, steps, segment)):
        if start:
            slots_SWCL[0].copy_(slots_SWCL[segment])
        if kept_XWCL is not None:
            kept_XWCL[index].copy_(slots_SWCL[0])
        stop = min(segment, steps - start)
        layout.advance(slots_SWCL[: stop + 1], start)
        if wants != "last":
            found = slots_SWCL[1 : stop + 1]
            values = layout.public(found) if readout is None else layout.read(found)
            every_step[:, start : start + stop].copy_(values.transpose(0, 1))
    last = layout.public(slots_SWCL)[stop].clone(memory_format=torch.contiguous_format)
    kept = slots_SWCL if keeps_all else state.new_empty(0) if kept_XWCL is None else kept_XWCL
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
    layout = _Layout(inputs, input_weight, bias, kernel, state, readout, nonlinearity)
    steps, sums = layout.num_steps, _Gradients(layout, inputs, needed)
    keeps_all = every == 1 and wants != "states"
    segment = steps if keeps_all else every if every > 1 else math.isqrt(steps)
    slots_SWCL = layout.slots(kept if keeps_all else borrow(state, (segment + 1) * layout.slot_numel))
    pair_2WCL = layout.slots(state.new_zeros(2 * layout.slot_numel))  # a step's gradient and the one before
    pair, pair_inner = pair_2WCL.unbind(0), layout.inner(pair_2WCL).unbind(0)
    pair_windows, pair_public = layout.windows(pair_2WCL).unbind(0), layout.public(pair_2WCL).unbind(0)
    outer_TOL = None
    if readout is not None and grad_every_step is not None:
        outer_TOL = F.pad(grad_every_step.permute(1, 2, 0), (0, layout.lanes - layout.batch)).contiguous()

    def enter(step: int, slot: int, add: bool) -> None:
        """Write, or add, what comes from outside to the gradient of the state after a step."""
        if not add:
            pair_inner[slot].zero_()
        if step == steps - 1 and grad_last is not None:
            pair_public[slot].add_(grad_last)
        if outer_TOL is not None:
            assert layout.readout_OM is not None
            pair_inner[slot].flatten(0, 1).addmm_(layout.readout_OM.t(), outer_TOL[step])
        elif grad_every_step is not None:
            pair_public[slot].add_(grad_every_step[:, step])

    now = 0
    enter(steps - 1, now, add=False)
    for index, start in reversed(list(enumerate(range(0, steps, segment)))):
        stop = min(start + segment, steps)
        if wants == "states":  # `kept` is what the caller got
            found = slots_SWCL[: stop - start + 1]
            if layout.lanes > layout.batch:
                found[..., layout.batch :].zero_()
            public = layout.public(found)
            public[0].copy_(kept[:, start - 1] if start else state)
            public[1:].copy_(kept[:, start:stop].transpose(0, 1))
            for slot_WCL in found.unbind(0):
                layout.fill_halo(slot_WCL)
        elif not keeps_all:
            slots_SWCL[0].copy_(layout.slots(kept)[index])
            layout.advance(slots_SWCL[: stop - start + 1], start)
        states = layout.inner(slots_SWCL).unbind(0)
        windows = layout.windows(slots_SWCL)[..., : layout.batch].unbind(0)
        for step in reversed(range(start, stop)):
            before = 1 - now
            state_NCL = states[step - start + 1]
            if sums.readout_OM is not None and outer_TOL is not None:
                states_MB = state_NCL.flatten(0, 1)[:, : layout.batch]  # without idle lanes, which may have overflowed
                sums.readout_OM.addmm_(outer_TOL[step, :, : layout.batch], states_MB.t())
            layout.through_nonlinearity(pair_inner[now], state_NCL)
            sums.add(step, pair_inner[now][..., : layout.batch], windows[step - start])
            if step or needed[4]:
                layout.fill_halo(pair[now])
                layout.convolve(layout.adjoint_CD, pair_windows[now], pair_inner[before], add=False)
                if step:
                    enter(step - 1, before, add=True)
            now = before
    grad_state = pair_public[now].contiguous() if needed[4] else None
    *found_sums, found_readout = sums.results()
    found_all = (*found_sums, grad_state, found_readout)
    return [None if gradient is None else gradient.contiguous() for gradient in found_all]
