"""How many dimensions a set of states fills."""

import torch
from torch import Tensor


def participation_ratio(states: Tensor) -> float:
    """Effective dimensionality (sum l)^2 / sum l^2 of states (units, samples), l the eigenvalues of their covariance.

    Range: 0 where nothing varies, else 1 to the number of units: 1 for a standing wave, 2 for a travelling sinusoid.
    Raises: ValueError for fewer than two samples. Source: Gao et al. 2017.
    """
    if states.ndim != 2 or states.shape[1] < 2:
        raise ValueError(f"states={tuple(states.shape)}: must be (units, samples) with at least 2 samples")
    values = states.detach().cpu().double()
    variances = torch.linalg.svdvals(values - values.mean(1, keepdim=True)).square()
    total = float(variances.sum())
    scale = float(values.square().sum())
    return total**2 / float(variances.square().sum()) if total > 1e-20 * scale else 0.0
