"""The recurrences as operators of torch: `wrnn::ring` and `wrnn::dense`, each with one derivative.

torch.compile, meta tensors and graphs see them as one node. Shapes as in functions.py; `kept` is whatever the backend
wants to find again in its backward. An absent gradient is an empty tensor.
"""

from typing import Any

import torch
from torch import Tensor

from wrnn.recurrence import cpp, rings, triton_rings
from wrnn.recurrence import dense as dense_form
from wrnn.recurrence.notices import say_once

_FORMS: dict[str, Any] = {"torch": rings, "cpp": cpp, "triton": triton_rings}


def choose(backend: str, bias: Tensor, kernel: Tensor) -> str:
    """Return the form that runs rings with such a bias (C, N) and kernel (C, C, K); say once which it is.

    Raises: ValueError for one that cannot run on this device and dtype.
    """
    wanted = backend if backend != "auto" else {"cpu": "cpp", "cuda": "triton"}.get(bias.device.type, "torch")
    if wanted not in ("cpp", "triton"):
        return wanted
    form = _FORMS[wanted]
    misfit = form.misfit(bias)
    if misfit and backend == wanted:
        raise ValueError(f"recurrence={backend}: {misfit}")
    problem = f"{wanted} {misfit}" if misfit else form.problem(bias, kernel)
    if problem:
        say_once(f"recurrence={backend}: torch, which is slower, because {problem}")
        return "torch"
    say_once(f"recurrence={backend}: {wanted}, {form.describe(bias)}")
    return wanted


@torch.library.custom_op("wrnn::ring", mutates_args=())
def ring(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None,
    nonlinearity: str,
    wants: str,
    every: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last state, what is wanted of every step, and what the backward needs (every=0: nothing)."""
    arguments = (inputs, input_weight, bias, kernel, state, readout)
    return _FORMS[choose(backend, bias, kernel)].forward(*arguments, nonlinearity, wants, every)


@torch.library.custom_op("wrnn::ring_backward", mutates_args=())
def ring_backward(
    grad_last: Tensor | None,
    grad_every_step: Tensor | None,
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None,
    kept: Tensor,
    nonlinearity: str,
    wants: str,
    every: int,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    """Return the gradients of inputs, input_weight, bias, kernel, state and readout, empty where not needed."""
    arguments = (inputs, input_weight, bias, kernel, state, readout)
    found = _FORMS[choose(backend, bias, kernel)].backward(
        grad_last, grad_every_step, arguments, kept, nonlinearity, wants, every, needed
    )
    return [inputs.new_empty(0) if gradient is None else gradient for gradient in found]


@ring.register_fake
def _(inputs, input_weight, bias, kernel, state, readout, nonlinearity, wants, every, backend):  # type: ignore[no-untyped-def]
    batch, steps = state.shape[0], inputs.shape[1]
    shape: tuple[int, ...] = {"states": (batch, steps, *bias.shape), "last": (0,)}.get(wants, ())
    if wants == "readout":
        shape = (batch, steps, readout.shape[0])
    kept = (
        _FORMS[choose(backend, bias, kernel)].kept_numel(inputs, bias, kernel, state, every)
        if every and wants != "states"
        else 0
    )
    return torch.empty_like(state, memory_format=torch.contiguous_format), state.new_empty(shape), state.new_empty(kept)


@ring_backward.register_fake
def _(grad_last, grad_every_step, *rest):  # type: ignore[no-untyped-def]
    tensors, needed = rest[:6], rest[-1]
    return [
        tensors[0].new_empty(0) if tensor is None or not need else tensor.new_empty(tensor.shape)
        for tensor, need in zip(tensors, needed, strict=True)
    ]


def _keep_ring(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, nonlinearity, wants, every, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.options = (nonlinearity, wants, every, backend)
    ctx.save_for_backward(*tensors, output[1] if wants == "states" else output[2])


def _ring_gradients(ctx: Any, grad_last: Tensor | None, grad_every_step: Tensor | None, _: Any) -> tuple[Any, ...]:
    *tensors, kept = ctx.saved_tensors  # refuses states that were changed in place
    if ctx.options[1] == "last":
        grad_every_step = None  # of an empty tensor
    needed = [tensor is not None and need for tensor, need in zip(tensors, ctx.needs_input_grad[:6], strict=True)]
    if grad_last is None and grad_every_step is None:
        return (None,) * 10
    found = ring_backward(grad_last, grad_every_step, *tensors, kept, *ctx.options, needed)
    return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None, None, None, None


ring.register_autograd(_ring_gradients, setup_context=_keep_ring)


@torch.library.custom_op("wrnn::dense", mutates_args=())
def dense(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    weight: Tensor,
    state: Tensor,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Return the last state (B, N) and all, the initial one first (T + 1, B, N)."""
    return dense_form.forward(inputs, input_weight, bias, weight, state, nonlinearity)


@torch.library.custom_op("wrnn::dense_backward", mutates_args=())
def dense_backward(
    grad_last: Tensor | None,
    grad_states: Tensor | None,
    inputs: Tensor,
    input_weight: Tensor | None,
    weight: Tensor,
    states: Tensor,
    nonlinearity: str,
    needed: list[bool],
) -> list[Tensor]:
    """Return the gradients of inputs, input_weight, bias, weight and state, empty where not needed."""
    found = dense_form.backward(grad_last, grad_states, inputs, input_weight, weight, states, nonlinearity, needed)
    return [inputs.new_empty(0) if gradient is None else gradient for gradient in found]


@dense.register_fake
def _(inputs, input_weight, bias, weight, state, nonlinearity):  # type: ignore[no-untyped-def]
    return state.new_empty(state.shape), state.new_empty(inputs.shape[1] + 1, *state.shape)


@dense_backward.register_fake
def _(grad_last, grad_states, inputs, input_weight, weight, states, nonlinearity, needed):  # type: ignore[no-untyped-def]
    shapes = (inputs.shape, () if input_weight is None else input_weight.shape, weight.shape[:1], weight.shape)
    return [
        inputs.new_empty(shape if need else 0) for shape, need in zip((*shapes, states.shape[1:]), needed, strict=True)
    ]


def _keep_dense(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sequence, input_weight, _, weight, _, nonlinearity = inputs
    ctx.set_materialize_grads(False)
    ctx.nonlinearity = nonlinearity
    ctx.save_for_backward(sequence, input_weight, weight, output[1])


def _dense_gradients(ctx: Any, grad_last: Tensor | None, grad_states: Tensor | None) -> tuple[Any, ...]:
    inputs, input_weight, weight, states = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:5])
    if grad_last is None and grad_states is None:
        return (None,) * 6
    found = dense_backward(grad_last, grad_states, inputs, input_weight, weight, states, ctx.nonlinearity, needed)
    return *(gradient if need else None for gradient, need in zip(found, needed, strict=True)), None


dense.register_autograd(_dense_gradients, setup_context=_keep_dense)


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError("the recurrence has no second derivative on this backend; recurrence=reference has")


for _operator in (ring_backward, dense_backward):
    _operator.register_autograd(_refuse)
