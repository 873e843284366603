"""The linear recurrence with one number a unit: h_t = a_t h_{t-1} + b_t, real or complex, one loop or log2(T) passes.

B batch, T time, N units.
"""

from typing import Any

import torch
from torch import Tensor

from wrnn.checks import one_of

METHODS = ("auto", "loop", "scan")


def linear_recurrence(decay: Tensor, drive: Tensor, state: Tensor, method: str = "auto") -> Tensor:
    """All states of h_t = decay_t * h_{t-1} + drive_t.

    Shape: decay (N,) or (B, T, N), drive (B, T, N), state (B, N), T >= 1, of one dtype -> (B, T, N).
    Args: method: `loop` goes step by step; `scan` combines neighbours, their neighbours and so on (Hillis & Steele
    1986), log2(T) passes over everything; `auto` takes the loop on a CPU, where nothing waits for a launch.
    One derivative. Raises: ValueError for another method.
    """
    one_of("method", method, METHODS)
    if method == "auto":
        method = "loop" if drive.device.type == "cpu" else "scan"
    states: Tensor = _LinearRecurrence.apply(decay, drive, state, method)
    return states


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, state: Tensor, method: str) -> Tensor:
        states = _states(decay, drive, state, method)
        ctx.save_for_backward(decay, state, states)
        ctx.method = method
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        decay, state, states = ctx.saved_tensors
        # What reaches h_t: its own gradient, and that of h_{t+1} times a_{t+1}. The same recurrence, backwards.
        backwards = decay.conj() if decay.ndim == 1 else _later(decay.conj()).flip(1)
        to_drive = _states(backwards, grad_states.flip(1), torch.zeros_like(state), ctx.method).flip(1)
        before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        to_decay = None
        if ctx.needs_input_grad[0]:
            to_decay = to_drive * before.conj()
            to_decay = to_decay.sum((0, 1)) if decay.ndim == 1 else to_decay
        first = decay if decay.ndim == 1 else decay[:, 0]
        return to_decay, to_drive, to_drive[:, 0] * first.conj(), None


def _later(decay: Tensor) -> Tensor:
    """decay_{t+1} at place t; the last meets a zero and counts for nothing."""
    return torch.cat([decay[:, 1:], decay[:, :1]], dim=1)


def _states(decay: Tensor, drive: Tensor, state: Tensor, method: str) -> Tensor:
    if method == "loop":
        states = torch.empty_like(drive, memory_format=torch.contiguous_format)
        decays = [decay] * drive.shape[1] if decay.ndim == 1 else decay.unbind(1)
        for decay_t, drive_t, state_t in zip(decays, drive.unbind(1), states.unbind(1), strict=True):
            state = torch.addcmul(drive_t, decay_t, state, out=state_t)
        return states
    factors = decay.expand_as(drive)
    first = drive[:, :1] + factors[:, :1] * state[:, None]
    states = torch.cat([first, drive[:, 1:]], dim=1)
    reach = 1  # each place holds the sum over the last `reach` drives, and the product of as many decays
    while reach < drive.shape[1]:
        summed = states[:, reach:] + factors[:, reach:] * states[:, :-reach]
        states = torch.cat([states[:, :reach], summed], dim=1)
        factors = torch.cat([factors[:, :reach], factors[:, reach:] * factors[:, :-reach]], dim=1)
        reach *= 2
    return states
