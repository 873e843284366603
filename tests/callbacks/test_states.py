"""Recording the state leaves training alone, and says what was there at each step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY_COPY, Compose
from wrnn.analysis.plots import states_of
from wrnn.errors import ConfigError
from wrnn.training import build, load_run, train

RECORD = ("callbacks=record_states", "callbacks.record_states.at_steps=[4]", "callbacks.record_states.sequence=1")


def test_a_recorded_run_is_the_same_run(compose_config: Compose, tmp_path: Path) -> None:
    cfg = compose_config(*TINY_COPY, *RECORD, f"paths.run_dir={tmp_path / 'seen'}")
    results = train(cfg)
    plain = train(compose_config(*TINY_COPY, f"paths.run_dir={tmp_path / 'plain'}"))
    assert results["identity"] == plain["identity"]
    seen, unseen = (load_run(tmp_path / name, "last").module.state_dict() for name in ("seen", "plain"))
    assert all(torch.equal(seen[key], unseen[key]) for key in unseen)

    kept = {path.stem: np.load(path) for path in (tmp_path / "seen/states").glob("*.npz")}
    assert set(kept) == {"step_0", "step_4", "step_15"}
    run = load_run(tmp_path / "seen", "last")
    inputs = run.task.make_batch("val", 0, 0).inputs[1]
    for step, core in ((0, build(cfg).core), (15, run.core)):
        found = kept[f"step_{step}"]
        assert np.array_equal(found["inputs"], inputs.numpy()) and found["states"].shape == (2, 7, 23)
        assert np.array_equal(found["states"], states_of(core, inputs).half().numpy())
    for name in ("states_early_and_late.png", "state_animation.gif"):
        assert (tmp_path / "seen" / name).stat().st_size > 5000


def test_normalisation_and_dropout_are_not_touched(compose_config: Compose, tmp_path: Path) -> None:
    words = [*(word for word in TINY_COPY if not word.startswith("model.")), "model=indrnn", "model.core.hidden_size=4"]
    for name, more in (("seen", RECORD), ("plain", ())):
        train(compose_config(*words, "model.core.num_layers=2", *more, f"paths.run_dir={tmp_path / name}"))
    seen, unseen = (load_run(tmp_path / name, "last").module.state_dict() for name in ("seen", "plain"))
    assert all(torch.equal(seen[key], unseen[key]) for key in unseen)


def test_a_recording_that_cannot_be(compose_config: Compose, tmp_path: Path) -> None:
    for word, message in (
        ("at_steps=[0]", r"callbacks.record_states.at_steps=0: must be a whole number of at least 1"),
        ("sequence=-1", "callbacks.record_states.sequence=-1: must be a whole number of at least 0"),
        ("sequence=16", "callbacks.record_states.sequence=16: must be below 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(compose_config(*TINY_COPY, "callbacks=record_states", f"callbacks.record_states.{word}"))
