"""When and on which channel inputs arrived, read from one state of a field of waves."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Onset:
    """An input that a state still shows.

    Attributes:
        channel: its ring.
        steps_ago: when it arrived, in steps before the state; 0 is the step that made the state.
        strength: the activity it left.
    """

    channel: int
    steps_ago: float
    strength: float


def decode_onsets(state: Tensor, velocity: float = 1.0, source: int = 0, threshold: float = 0.5) -> list[Onset]:
    """Inputs that entered at one unit and moved towards lower indices, by channel, the latest first.

    A pulse d units below the source came d / velocity steps ago. That holds for the last N / velocity steps: older
    pulses have been all around the ring and lie on newer ones. Below 1 unit a step every unit above the threshold is
    an onset of its own, though a pulse may then lie on several.

    Args:
        state: (C, N), one state.
        velocity: units per step, in (0, N].
        source: the unit that inputs write to.
        threshold: activity above it is an input.

    Raises: ValueError. Source: Keller et al. 2024, Figure 1.
    """
    if state.ndim != 2:
        raise ValueError(f"state of shape {tuple(state.shape)}: must be (channels, units)")
    units = state.shape[1]
    if not 0 < velocity <= units:
        raise ValueError(f"velocity={velocity!r}: must be more than 0 and at most {units} units per step")
    if not 0 <= source < units:
        raise ValueError(f"source={source!r}: must be a unit, from 0 to {units - 1}")
    distance = torch.arange(units, dtype=torch.float64)
    if velocity > 1:
        distance = distance[: int((units - 0.5) / velocity) + 1] * velocity  # where a pulse is after whole steps
    place = (source - distance.round().long()) % units
    found = state.detach().double().cpu()[:, place]
    steps_ago = distance / velocity
    return [
        Onset(channel, float(steps_ago[index]), float(found[channel, index]))
        for channel, index in (found > threshold).nonzero().tolist()
    ]
