"""The dense recurrence in plain torch: two small calls a step, and one product for each gradient at the end.

B batch, T time, I input features, N neurons; S = T + 1 states, the initial one first.
"""

import torch
from torch import Tensor

from wrnn.recurrence.buffers import borrow


def forward(
    inputs: Tensor, input_weight: Tensor | None, bias: Tensor, weight: Tensor, state: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """Return the last state (B, N) and all (S, B, N)."""
    (batch, steps, _), neurons = inputs.shape, bias.shape[0]
    states_SBN = borrow(inputs, steps + 1, batch, neurons)
    states_SBN[0] = state
    if input_weight is None:
        torch.add(inputs.transpose(0, 1), bias, out=states_SBN[1:])
    else:
        torch.addmm(bias, inputs.transpose(0, 1).flatten(0, 1), input_weight.t(), out=states_SBN[1:].view(-1, neurons))
    slots, weight_t = states_SBN.unbind(0), weight.t()
    for before_BN, now_BN in zip(slots, slots[1:], strict=False):
        now_BN.addmm_(before_BN, weight_t)
        if nonlinearity == "relu":
            now_BN.relu_()
        elif nonlinearity == "tanh":
            now_BN.tanh_()
    return slots[-1].clone(), states_SBN


def backward(
    grad_last: Tensor | None,
    grad_states: Tensor | None,
    inputs: Tensor,
    input_weight: Tensor | None,
    weight: Tensor,
    states_SBN: Tensor,
    nonlinearity: str,
    needed: list[bool],
) -> list[Tensor | None]:
    """Return the gradients of inputs, input_weight, bias, weight and state, None where not needed."""
    need_inputs, need_input_weight, need_bias, need_weight, need_state = needed
    steps, batch, neurons = len(states_SBN) - 1, *states_SBN.shape[1:]
    gradients_TBN = borrow(states_SBN, steps, batch, neurons)
    gradients, states = gradients_TBN.unbind(0), states_SBN.unbind(0)
    outer = None if grad_states is None else grad_states.unbind(0)[1:]
    for t in reversed(range(steps)):
        gradient_BN = gradients[t]
        gradient_BN.zero_() if outer is None else gradient_BN.copy_(outer[t])
        if t == steps - 1:
            if grad_last is not None:
                gradient_BN.add_(grad_last)
        else:
            gradient_BN.addmm_(gradients[t + 1], weight)
        if nonlinearity == "relu":
            torch.ops.aten.threshold_backward.grad_input(gradient_BN, states[t + 1], 0, grad_input=gradient_BN)
        elif nonlinearity == "tanh":
            torch.ops.aten.tanh_backward.grad_input(gradient_BN, states[t + 1], grad_input=gradient_BN)
    gradients_MN = gradients_TBN.view(-1, neurons)
    found: list[Tensor | None] = [None] * 5
    if need_inputs:
        to_inputs = (
            gradients_TBN.clone()
            if input_weight is None
            else (gradients_MN @ input_weight).unflatten(0, (steps, batch))
        )
        found[0] = to_inputs.transpose(0, 1).contiguous()
    if need_input_weight:
        found[1] = gradients_MN.t() @ inputs.transpose(0, 1).flatten(0, 1)
    if need_bias:
        found[2] = gradients_MN.sum(0)
    if need_weight:
        found[3] = gradients_MN.t() @ states_SBN[:-1].view(-1, neurons)
    if need_state:
        to_state = gradients[0] @ weight
        found[4] = to_state if grad_states is None else to_state + grad_states[0]
    return found
