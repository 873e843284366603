"""When, and on which channel, did an input come? Read from one state of a field of waves.

Source: Keller et al. 2024, Figure 1.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Onset:
    """An input that a state remembers.

    Attributes:
        channel: where it came in.
        steps_ago: time since, in steps; 0 is the step that made the state.
        strength: the activity that is left of it.
    """

    channel: int
    steps_ago: float
    strength: float


def decode_onsets(state: Tensor, velocity: float = 1.0, source: int = 0, threshold: float = 0.5) -> list[Onset]:
    """Inputs by channel, the latest first, from a state (C, N).

    A pulse enters at the neuron `source` and moves towards lower indices, so its distance is its age. That holds for
    the last N / velocity steps: an older pulse has gone once around and lies on younger ones. It does not hold for a
    static state, where all pulses of a channel lie on one neuron.

    Args:
        state: C channels of N neurons.
        velocity: of the waves, in neurons per step, above 0.
        source: where inputs enter.
        threshold: the least activity that counts as a pulse.

    Raises: ValueError for a state of another shape, or a velocity or a source out of range.
    """
    if state.ndim != 2:
        raise ValueError(f"state={tuple(state.shape)}: must be (C, N)")
    if velocity <= 0:
        raise ValueError(f"velocity={velocity}: must be above 0")
    num_neurons = state.shape[1]
    if not 0 <= source < num_neurons:
        raise ValueError(f"source={source}: must be in [0, {num_neurons - 1}]")
    found = [
        Onset(channel, ((source - neuron) % num_neurons) / velocity, float(state[channel, neuron]))
        for channel, neuron in (state >= threshold).nonzero().tolist()
    ]
    return sorted(found, key=lambda onset: (onset.channel, onset.steps_ago))
