"""Seeds: one number made of several, so that every random draw of a run is a function of (seed, purpose, step)."""

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """Mix whole numbers into one 63-bit seed. Equal parts give an equal seed, others an unrelated one.

    Zeros at the end of up to four parts alone make no difference.
    """
    words = np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(*parts: int) -> torch.Generator:
    """A torch generator on the CPU seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
