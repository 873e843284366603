"""The public functions: they check their arguments, choose how to compute, and say once what they chose."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wrnn.checks import one_of, whole_number
from wrnn.recurrence import ops, reference
from wrnn.recurrence.notices import say_once
from wrnn.recurrence.reference import NONLINEARITIES

BACKENDS: Mapping[str, str] = {
    "auto": "the fastest that this machine, device and dtype allow",
    "reference": "the readable loop, under ordinary autograd",
    "torch": "one operator with a backward by hand, in plain torch",
    "cpp": "one operator in C++, float32 or float64 on the CPU; compiled at first use",
    "triton": "one operator in Triton, float32 on a CUDA GPU; compiled and tuned at first use",
}
"""Ways to compute, which agree in values and gradients."""

MAX_STORED_BYTES = 4 * 2**30
"""Most bytes of states that are kept in main memory for the backward by choice of `store_every=None`."""


def _free_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


_FREE_BYTES = _free_bytes()


def states_to_keep(steps: int, bytes_a_step: int, device: torch.device) -> int:
    """K, to keep every K-th state for the backward: 1 if all fit, see `ring_recurrence`, else sqrt(T), and says so."""
    on_gpu = device.type == "cuda"
    most = (
        torch.cuda.get_device_properties(device).total_memory / 4 if on_gpu else min(MAX_STORED_BYTES, _FREE_BYTES / 4)
    )
    if steps * bytes_a_step <= most:
        return 1
    every = math.isqrt(steps)
    if not torch.compiler.is_compiling():
        needed = f"{steps * bytes_a_step / 2**30:.1f} GiB"
        say_once(f"store_every: {every}, because all {steps} states would take {needed}")
    return every


class Sequence(NamedTuple):
    """What a recurrence returns: the state after the last step, and what was wanted of every step, or None."""

    last: Tensor
    every_step: Tensor | None


def ring_recurrence(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None = None,
    *,
    nonlinearity: str = "relu",
    wants: str = "states",
    backend: str = "auto",
    store_every: int | None = None,
) -> Sequence:
    """Run h_t = phi(kernel * h_{t-1} + input_weight x_t + bias) over all steps.

    Args:
        inputs: (B, T, I) with input_weight; or (B, T, C*N), the finished drive, without. (1, T, ...) with B states: the
            same for every sequence, and never copied for them.
        input_weight: (C, N, I), or None.
        bias: (C, N), added at each step.
        kernel: (C out, C in, K), K odd and at most N.
        state: (B, C, N), before the first step.
        readout: (O, C, N), a linear map of every state, for wants="readout".
        nonlinearity: phi: relu, tanh or identity.
        wants: of every step: `states` (B, T, C, N); `readout` (B, T, O), without its bias, which spares writing and
            reading all states; or `last`, nothing.
        backend: one of `BACKENDS`.
        store_every: keep every K-th state for the backward and compute the others again; 1 keeps all. None: all if they
            take at most 4 GiB and a quarter of the memory that is free, or a quarter of a GPU's memory, else
            K = sqrt(T). The readable loop keeps all.

    Returns the last state (B, C, N), and what is wanted of every step. Computes in the promoted dtype of its arguments,
    with autocast off. Differentiable once (`reference`: any number of times). `cpp` skips inputs that are exactly 0, so
    that a NaN or an infinity in their weight does not show.
    Raises: ValueError for a bad shape or option, or a backend that cannot run on these tensors.
    """
    one_of("wants", wants, ("states", "readout", "last"))
    if (wants == "readout") != (readout is not None):
        raise ValueError(f"wants={wants!r}: a readout must be given for wants='readout' and for no other")
    one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    one_of("backend", backend, BACKENDS)
    _check_ring(inputs, input_weight, bias, kernel, state, readout)
    shares = inputs.shape[0] < state.shape[0]
    dtype = _promoted(inputs, input_weight, bias, kernel, state, readout)
    with torch.autocast(inputs.device.type, enabled=False):
        inputs, bias, kernel, state = inputs.to(dtype), bias.to(dtype), kernel.to(dtype), state.to(dtype)
        input_weight = None if input_weight is None else input_weight.to(dtype)
        readout = None if readout is None else readout.to(dtype)
        if backend == "reference":
            arguments = (inputs, input_weight, bias, kernel, state, readout)
            return Sequence(*reference.run(*arguments, nonlinearity, wants))
        if input_weight is not None and (shares or _drive_is_cheap(inputs, state)):
            inputs, input_weight = inputs @ input_weight.flatten(0, 1).mT, None  # one product for all steps
        tensors = (inputs, input_weight, bias, kernel, state, readout)
        keeps = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
        every = _store_every(store_every, inputs, state) if keeps and wants != "states" else int(keeps)
        last, every_step, _ = ops.ring(
            inputs, input_weight, bias, kernel, state, readout, nonlinearity, wants, every, backend
        )
    return Sequence(last, None if wants == "last" else every_step)


def dense_recurrence(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    weight: Tensor,
    state: Tensor,
    *,
    nonlinearity: str = "relu",
    wants: str = "states",
    backend: str = "auto",
) -> Sequence:
    """Run h_t = phi(weight h_{t-1} + input_weight x_t + bias) over all steps.

    Shape: inputs (B, T, I) with input_weight (N, I), or (B, T, N), the finished drive, with input_weight None; bias
    (N,); weight (N out, N in); state (B, N). Returns the last state (B, N) and, for wants="states", all (B, T, N).
    Matrix products do the work, so `cpp` and `triton` mean `torch` here; on a GPU `auto` takes cuDNN where it can (with
    TF32 unless torch.backends.cudnn.allow_tf32 is False, as it is in a run). Else as `ring_recurrence`.
    """
    one_of("wants", wants, ("states", "last"))
    one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    one_of("backend", backend, BACKENDS)
    _check_dense(inputs, input_weight, bias, weight, state)
    with torch.autocast(inputs.device.type, enabled=False):
        dtype = _promoted(inputs, input_weight, bias, weight, state)
        inputs, bias, weight, state = inputs.to(dtype), bias.to(dtype), weight.to(dtype), state.to(dtype)
        input_weight = None if input_weight is None else input_weight.to(dtype)
        if backend == "reference":
            column = (bias.unsqueeze(-1), weight.unsqueeze(-1), state.unsqueeze(-1))
            weight_N1I = None if input_weight is None else input_weight.unsqueeze(1)
            last, states = reference.run(inputs, weight_N1I, *column, None, nonlinearity, wants)
            return Sequence(last.squeeze(-1), None if states is None else states.squeeze(-1))
        if backend == "auto" and inputs.is_cuda and input_weight is not None and nonlinearity != "identity":
            states, last = library_rnn(inputs, input_weight, bias, weight, state, nonlinearity)
            return Sequence(last, states if wants == "states" else None)
        last, states_SBN = ops.dense(inputs, input_weight, bias, weight, state, nonlinearity)
        return Sequence(last, states_SBN[1:].transpose(0, 1) if wants == "states" else None)


def library_rnn(
    inputs: Tensor, input_weight: Tensor, bias: Tensor, weight: Tensor, state: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """The dense recurrence as torch's own RNN, which is cuDNN's on a GPU: all states (B, T, N) and the last (B, N)."""
    run = {"relu": torch.rnn_relu, "tanh": torch.rnn_tanh}[nonlinearity]
    parameters = [input_weight, weight, bias, torch.zeros_like(bias)]
    states, last = run(inputs, state.unsqueeze(0), parameters, True, 1, 0.0, True, False, True)
    return states, last.squeeze(0)


def _drive_is_cheap(inputs: Tensor, state: Tensor) -> bool:
    """Whether V x_t of all steps is better one product: many inputs, and not too much to write."""
    return inputs.shape[-1] > 16 and inputs.shape[1] * state.numel() * state.element_size() <= 2**28


def _store_every(store_every: int | None, inputs: Tensor, state: Tensor) -> int:
    steps = inputs.shape[1]
    if store_every is not None:
        return min(steps, whole_number("store_every", store_every))
    return states_to_keep(steps, state.numel() * state.element_size(), state.device)


def _promoted(first: Tensor, *tensors: Tensor | None) -> torch.dtype:
    dtype = first.dtype
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return dtype


def _check_ring(
    inputs: Tensor, input_weight: Tensor | None, bias: Tensor, kernel: Tensor, state: Tensor, readout: Tensor | None
) -> None:
    _check_shape("bias", bias, ("C", "N"), {})
    sizes = {"C": bias.shape[0], "N": bias.shape[1]}
    _check_shape("kernel", kernel, ("C", "C", "K"), sizes)
    taps, neurons = kernel.shape[-1], sizes["N"]
    if taps % 2 == 0 or not 1 <= taps <= neurons:
        raise ValueError(f"kernel has {taps} taps; must be odd and from 1 to the ring size {neurons}")
    _check_inputs(inputs, input_weight, ("C", "N"), sizes)
    batch = {} if inputs.shape[0] == 1 else {"B": inputs.shape[0]}
    _check_shape("state", state, ("B", "C", "N"), sizes | batch)
    if readout is not None:
        _check_shape("readout", readout, ("O", "C", "N"), sizes)


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
