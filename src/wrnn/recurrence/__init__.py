"""The recurrence over a whole sequence: h_t = phi(u * h_{t-1} + V x_t + b), on rings of neurons or dense.

`u *` is the cross-correlation of `torch.nn.functional.conv1d` with circular padding: out_n = sum_k u_k h_{n+k-K//2},
so taps [0, 0, 1] move activity by one neuron towards lower indices per step. Source: Keller et al. 2024, section 2 (the
model); how it is computed is ours: functions.py chooses, reference.py is the readable loop and the truth for all,
rings.py and dense.py are forms in plain torch; kernel.cpp (through cpp.py) is compiled for the CPU, triton_kernels.py
(through triton_rings.py) for a GPU. linear.py is the linear recurrence of other cores, one number a unit.
"""

from wrnn.recurrence.functions import BACKENDS, Sequence, dense_recurrence, ring_recurrence, states_to_keep
from wrnn.recurrence.linear import linear_recurrence
from wrnn.recurrence.ops import choose
from wrnn.recurrence.reference import NONLINEARITIES

__all__ = [
    "BACKENDS",
    "NONLINEARITIES",
    "Sequence",
    "choose",
    "dense_recurrence",
    "linear_recurrence",
    "ring_recurrence",
    "states_to_keep",
]
