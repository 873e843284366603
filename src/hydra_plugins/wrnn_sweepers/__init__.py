"""Hydra finds plugins in `hydra_plugins` only; the work is done in `wrnn.sweeps`."""
