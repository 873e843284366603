"""How many directions of its state space a recurrent core uses."""

import torch
from torch import Tensor


def participation_ratio(states: Tensor) -> float:
    """Effective dimensionality of states: (sum of l)^2 / sum of l^2 over the eigenvalues l of their covariance.

    Between 1, where all variance is in one direction, and min(units, samples - 1); 0 where nothing varies. A travelling
    sinusoid gives 2, a standing one 1, white noise about the number of units where there are many more samples: of M
    samples it gives N M / (N + M).

    Shape: states (units, samples); time steps and sequences are samples alike. Raises: ValueError.
    Source: Gao et al. 2017.
    """
    if states.ndim != 2 or states.shape[0] < 1 or states.shape[1] < 2:
        raise ValueError(f"states of shape {tuple(states.shape)}: must be (units, samples) with at least 2 samples")
    states = states.detach().double()
    if not torch.isfinite(states).all():
        raise ValueError("states: must be finite, some are not")
    largest = states.abs().max()
    if largest == 0:
        return 0.0
    states = states / largest
    centered = states - states.mean(1, keepdim=True)
    if centered.abs().max() < 1e-12:
        return 0.0
    gram = centered @ centered.T if centered.shape[0] <= centered.shape[1] else centered.T @ centered
    return float(gram.trace().square() / gram.square().sum())
