"""The recurrence over a whole sequence: h_t = phi(u * h_{t-1} + V x_t + b), on rings of neurons or dense.

`u *` is the cross-correlation of `torch.nn.functional.conv1d` with circular padding: out_n = sum_k u_k h_{n+k-K//2},
so taps [0, 0, 1] move activity by one neuron towards lower indices per step. A dense recurrence is the same equation
with rings of one neuron and K = 1: its units are the channels. Source: Keller et al. 2024, section 2 (the model); the
layout below is ours.

Backends: `reference` is the readable loop under ordinary autograd, the truth for all others. `torch` is the same
equation with a hand-written backward and these ideas:

- Layout. A state is stored as (ring position, channel, sample), the sample innermost, and a ring carries K//2 positions
  of its other end on both sides (the halo, two small copies a step). The K neighbours of a position are then one block
  of K*C rows, blocks of successive positions overlap, and the whole convolution is one batched matrix product
  (C, K*C) x (K*C, B) over positions, on a strided view: no copies of the state, no separate products for the taps.
  Its adjoint (taps flipped, channels swapped) and the kernel's gradient are batched products on the same views.
- Drive. V x_t + b is written where the next state will stand, just before the convolution adds to it; there is no
  (B, T, C*N) drive.
- Memory. All states are kept for the backward, in a buffer that later calls use again (fresh pages cost more than the
  arithmetic); above `MAX_STORED_BYTES` only every sqrt(T)-th state is kept and the others are computed again.

Axes: B batch, T time, I input features, C channels, N neurons per ring, K taps, D = K*C, M = N*C, W = N + K - 1 ring
with halo, L lanes (B, at least 16 and a multiple of 4: products with fewer columns or odd strides are slow), S slots (a
state and those of the steps after it).
"""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wrnn.checks import one_of

MAX_STORED_BYTES = 4 * 2**30
"""Most bytes of states kept for one backward; more is recomputed from every sqrt(T)-th."""

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Backend(Protocol):
    """A way to compute the recurrence on rings; all of `BACKENDS` agree in values and gradients."""

    def __call__(
        self,
        inputs: Tensor,
        input_weight: Tensor | None,
        bias: Tensor,
        kernel: Tensor,
        state: Tensor,
        nonlinearity: str,
        last_only: bool,
    ) -> Tensor:
        """Take what `ring_recurrence` takes, already checked and of one dtype; return what it returns."""
        ...


def ring_recurrence(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    *,
    nonlinearity: str = "relu",
    last_only: bool = False,
    backend: str = "torch",
) -> Tensor:
    """Run h_t = phi(kernel * h_{t-1} + input_weight x_t + bias) over all steps.

    Shape: inputs (B, T, I) with input_weight (C, N, I), or (B, T, C*N), the finished drive, with input_weight None;
    bias (C, N), added at each step; kernel (C out, C in, K), K odd and at most N; state (B, C, N). Returns
    (B, T, C, N), or the last step (B, C, N) if `last_only`; not always contiguous. Computes in the promoted dtype of
    its arguments, with autocast off. Differentiable once (`reference`: any number of times). Raises: ValueError for a
    bad shape or option.
    """
    _check_ring(inputs, input_weight, bias, kernel, state)
    return _dispatch(inputs, input_weight, bias, kernel, state, nonlinearity, last_only, backend)


def dense_recurrence(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    weight: Tensor,
    state: Tensor,
    *,
    nonlinearity: str = "relu",
    last_only: bool = False,
    backend: str = "torch",
) -> Tensor:
    """Run h_t = phi(weight h_{t-1} + input_weight x_t + bias) over all steps.

    Shape: inputs (B, T, I) with input_weight (N, I), or (B, T, N), the finished drive, with input_weight None; bias
    (N,); weight (N out, N in); state (B, N). Returns (B, T, N), or (B, N) if `last_only`. Else as `ring_recurrence`.
    """
    _check_dense(inputs, input_weight, bias, weight, state)
    input_weight_N1I = None if input_weight is None else input_weight.unsqueeze(1)
    arguments = (inputs, input_weight_N1I, bias.unsqueeze(-1), weight.unsqueeze(-1), state.unsqueeze(-1))
    return _dispatch(*arguments, nonlinearity, last_only, backend).squeeze(-1)


def _dispatch(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    nonlinearity: str,
    last_only: bool,
    backend: str,
) -> Tensor:
    one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    one_of("backend", backend, BACKENDS)
    dtype = inputs.dtype
    for tensor in (input_weight, bias, kernel, state):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    weight = None if input_weight is None else input_weight.to(dtype)
    with torch.autocast(inputs.device.type, enabled=False):
        return BACKENDS[backend](
            inputs.to(dtype), weight, bias.to(dtype), kernel.to(dtype), state.to(dtype), nonlinearity, last_only
        )


def _check_ring(inputs: Tensor, input_weight: Tensor | None, bias: Tensor, kernel: Tensor, state: Tensor) -> None:
    _check_shape("bias", bias, ("C", "N"), {})
    sizes = {"C": bias.shape[0], "N": bias.shape[1]}
    _check_shape("kernel", kernel, ("C", "C", "K"), sizes)
    taps, neurons = kernel.shape[-1], sizes["N"]
    if taps % 2 == 0 or not 1 <= taps <= neurons:
        raise ValueError(f"kernel has {taps} taps; must be odd and from 1 to the ring size {neurons}")
    _check_inputs(inputs, input_weight, ("C", "N"), sizes)
    _check_shape("state", state, ("B", "C", "N"), sizes | {"B": inputs.shape[0]})


def _check_dense(inputs: Tensor, input_weight: Tensor | None, bias: Tensor, weight: Tensor, state: Tensor) -> None:
    _check_shape("bias", bias, ("N",), {})
    sizes = {"N": bias.shape[0]}
    _check_shape("weight", weight, ("N", "N"), sizes)
    _check_inputs(inputs, input_weight, ("N",), sizes)
    _check_shape("state", state, ("B", "N"), sizes | {"B": inputs.shape[0]})


def _check_inputs(inputs: Tensor, input_weight: Tensor | None, units: tuple[str, ...], sizes: dict[str, int]) -> None:
    if input_weight is None:
        width = "*".join(units)
        _check_shape("inputs", inputs, ("B", "T", width), {width: math.prod(sizes.values())})
    else:
        _check_shape("inputs", inputs, ("B", "T", "I"), {})
        _check_shape("input_weight", input_weight, (*units, "I"), sizes | {"I": inputs.shape[-1]})


def _check_shape(name: str, tensor: Tensor, axes: tuple[str, ...], sizes: dict[str, int]) -> None:
    fits = tensor.dim() == len(axes) and tensor.is_floating_point()
    if not fits or any(
        size < 1 or size != sizes.get(axis, size) for axis, size in zip(axes, tensor.shape, strict=True)
    ):
        legal = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else f"{axis}>=1" for axis in axes)
        raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; must be floating point ({legal})")


# ---------------------------------------------------------------------------------------------------------- reference


def _reference(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    nonlinearity: str,
    last_only: bool,
) -> Tensor:
    phi, half = NONLINEARITIES[nonlinearity], kernel.shape[-1] // 2
    states_BCN = []
    for input_BI in inputs.unbind(1):
        if input_weight is None:
            drive_BCN = input_BI.unflatten(-1, bias.shape)
        else:
            drive_BCN = F.linear(input_BI, input_weight.flatten(0, 1)).unflatten(-1, bias.shape)
        state = phi(F.conv1d(F.pad(state, (half, half), mode="circular"), kernel) + drive_BCN + bias)
        states_BCN.append(state)
    return state if last_only else torch.stack(states_BCN, dim=1)


# -------------------------------------------------------------------------------------------------------------- torch


def _torch(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    nonlinearity: str,
    last_only: bool,
) -> Tensor:
    tensors = (inputs, input_weight, bias, kernel, state)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    result: Tensor = _FusedRecurrence.apply(*tensors, nonlinearity, last_only, keep)
    return result


class _Layout:
    """Sizes, weights and views of the (position, channel, sample) layout, and steps through time in it."""

    def __init__(self, inputs: Tensor, input_weight: Tensor | None, bias: Tensor, kernel: Tensor, nonlinearity: str):
        self.nonlinearity = nonlinearity
        self.batch, self.num_steps, _ = inputs.shape
        self.channels, self.neurons = bias.shape
        self.taps, self.half = kernel.shape[-1], kernel.shape[-1] // 2
        self.lanes = max(16, -(-self.batch // 4) * 4)
        self.slot_shape = (self.neurons + 2 * self.half, self.channels, self.lanes)
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
            torch.add(self.drives_TNCB[step], bias_NC1, out=target_NCL[..., : self.batch])
            target_NCL[..., self.batch :].zero_()

    def through_nonlinearity(self, gradient_NCL: Tensor, state_NCL: Tensor) -> None:
        if self.nonlinearity == "relu":
            torch.ops.aten.threshold_backward.grad_input(gradient_NCL, state_NCL, 0, grad_input=gradient_NCL)
        elif self.nonlinearity == "tanh":
            torch.ops.aten.tanh_backward.grad_input(gradient_NCL, state_NCL, grad_input=gradient_NCL)


class _Gradients:
    """Sums of the gradients somebody needs, one step at a time."""

    def __init__(self, layout: _Layout, inputs: Tensor, needed: tuple[bool, ...]) -> None:
        self.layout = layout
        need_inputs, need_input_weight, need_bias, need_kernel, _ = needed
        rows, depth = layout.neurons * layout.channels, layout.taps * layout.channels
        self.inputs_BTI = inputs.new_empty(inputs.shape) if need_inputs else None
        self.weight_MI = None
        if need_input_weight:  # the order of storage decides which operand the product copies: up to 4 x
            features = inputs.shape[-1]
            few = features <= 4
            self.weight_MI = inputs.new_zeros(rows, features) if few else inputs.new_zeros(features, rows).t()
        self.bias_M = inputs.new_zeros(rows) if need_bias else None
        self.kernel_NCD = inputs.new_zeros(layout.neurons, layout.channels, depth) if need_kernel else None

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
                gradient_BI.unflatten(-1, (self.layout.channels, -1)).copy_(gradient_NCB.permute(2, 1, 0))
            else:
                gradient_BI.copy_(gradient_MB.t() @ self.layout.weight_MI)

    def results(self) -> tuple[Tensor | None, ...]:
        """Gradients to inputs, input_weight, bias and kernel in the shapes of these."""
        shape = (self.layout.neurons, self.layout.channels)
        input_weight = bias = kernel = None
        if self.weight_MI is not None:
            input_weight = self.weight_MI.unflatten(0, shape).transpose(0, 1)
        if self.bias_M is not None:
            bias = self.bias_M.view(shape).t()
        if self.kernel_NCD is not None:
            kernel = self.kernel_NCD.sum(0).unflatten(1, (self.layout.taps, -1)).transpose(1, 2)
        return self.inputs_BTI, input_weight, bias, kernel


_POOL: list[tuple[Tensor, weakref.ref[Tensor]]] = []
_POOL_LOCK = threading.Lock()


def _borrow(like: Tensor, numel: int) -> Tensor:
    """Return an uninitialised flat tensor from a pool; its memory is lent again when the tensor has died."""
    if like.device.type != "cpu":
        return like.new_empty(numel)  # accelerators have a caching allocator
    with _POOL_LOCK:
        free = [i for i, (_, user) in enumerate(_POOL) if user() is None]
        fitting = [i for i in free if _POOL[i][0].dtype == like.dtype and _POOL[i][0].numel() >= numel]
        if fitting:
            chosen = min(fitting, key=lambda i: _POOL[i][0].numel())
            buffer = _POOL.pop(chosen)[0]
        else:
            for i in reversed(free):
                del _POOL[i]
            with torch.inference_mode(False):  # else a validation's buffer could never serve training
                buffer = torch.empty(numel, dtype=like.dtype, device=like.device)
        lent = buffer[:numel]
        _POOL.append((buffer, weakref.ref(lent)))
    return lent


class _FusedRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        input_weight: Tensor | None,
        bias: Tensor,
        kernel: Tensor,
        state: Tensor,
        nonlinearity: str,
        last_only: bool,
        keep: bool,
    ) -> Tensor:
        layout = _Layout(inputs, input_weight, bias, kernel, nonlinearity)
        steps, numel = layout.num_steps, layout.slot_numel
        store = not last_only or (keep and (steps + 1) * numel * inputs.element_size() <= MAX_STORED_BYTES)
        segment = steps if store else math.isqrt(steps) if keep else 1
        size = (segment + 1) * numel
        buffer = _borrow(inputs, size) if last_only else inputs.new_empty(size)  # what the caller gets is his to keep
        slots_SWCL = layout.slots(buffer)
        slots_SWCL[0].zero_()
        layout.set_state(slots_SWCL[0], state)
        kept_WCL = []
        for start in range(0, steps, segment):
            if start:
                slots_SWCL[0].copy_(slots_SWCL[segment])
            if keep and not store:
                kept_WCL.append(slots_SWCL[0].clone())
            stop = min(segment, steps - start)
            layout.advance(slots_SWCL[: stop + 1], start)
        states_SBCN = layout.public(slots_SWCL)
        if keep:
            ctx.save_for_backward(inputs, input_weight, bias, kernel, *([buffer] if store else kept_WCL))
            ctx.options = (nonlinearity, last_only, store, segment)
        return states_SBCN[stop].contiguous() if last_only else states_SBCN[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_output.device.type, enabled=False):
            return _FusedRecurrence._backward(ctx, grad_output)

    @staticmethod
    def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, input_weight, bias, kernel, *saved = ctx.saved_tensors  # refuses an output that was changed in place
        nonlinearity, last_only, store, segment = ctx.options
        layout = _Layout(inputs, input_weight, bias, kernel, nonlinearity)
        sums = _Gradients(layout, inputs, ctx.needs_input_grad[:5])
        slots_SWCL = layout.slots(saved[0] if store else inputs.new_empty((segment + 1) * layout.slot_numel))
        pair_2WCL = layout.slots(inputs.new_zeros(2 * layout.slot_numel))  # a step's gradient and the one before
        pair, pair_inner = pair_2WCL.unbind(0), layout.inner(pair_2WCL).unbind(0)
        pair_windows, pair_public = layout.windows(pair_2WCL).unbind(0), layout.public(pair_2WCL).unbind(0)
        pair_public[0].copy_(grad_output if last_only else grad_output[:, -1])
        now = 0
        for index, start in reversed(list(enumerate(range(0, layout.num_steps, segment)))):
            stop = min(start + segment, layout.num_steps)
            if not store:
                slots_SWCL[0].copy_(saved[index])
                layout.advance(slots_SWCL[: stop - start + 1], start)
            states = layout.inner(slots_SWCL).unbind(0)
            windows = layout.windows(slots_SWCL)[..., : layout.batch].unbind(0)
            for step in reversed(range(start, stop)):
                before = 1 - now
                layout.through_nonlinearity(pair_inner[now], states[step - start + 1])
                sums.add(step, pair_inner[now][..., : layout.batch], windows[step - start])
                if step or ctx.needs_input_grad[4]:
                    layout.fill_halo(pair[now])
                    more = step > 0 and not last_only
                    if more:
                        pair_public[before].copy_(grad_output[:, step - 1])
                    layout.convolve(layout.adjoint_CD, pair_windows[now], pair_inner[before], add=more)
                now = before
        grad_state = pair_public[now].contiguous() if ctx.needs_input_grad[4] else None
        return *sums.results(), grad_state, None, None, None


BACKENDS: dict[str, Backend] = {"reference": _reference, "torch": _torch}
