"""The table of all cores, from a sweep of two."""

from pathlib import Path

import pytest

from wrnn.errors import ConfigError
from wrnn.zoo import main


def test_the_table_names_what_ran_and_what_did_not(tmp_path: Path) -> None:
    folder, output = tmp_path / "zoo", tmp_path / "zoo.md"
    words = ["model=lem,cornn", "task=adding,copy", "trainer.max_steps=3", "trainer=cpu", "optimizer.lr=1e-3"]
    words += ["task.datamodule.batch_size=4", "task.datamodule.num_val=8", "task.datamodule.num_test=8"]
    words += ["task.datamodule.eval_batch_size=8"]
    main([*words, "--folder", str(folder), "--longer", str(folder), "--output", str(output)])
    text, longer = output.read_text().split("## Other budgets")
    assert "### copy" in longer and longer.count("| cornn") == 2
    assert (
        "python src/zoo.py --folder FOLDER --output FILE --longer LONGER model=lem,cornn" in text
        and "seed 0" in text
        and "1 thread a run" in text
    )
    rows = [line for line in text.splitlines() if line.startswith("| cornn")]
    count = 128 * (2 + 2 * 128) + 128 + 129  # on adding: W, W', V, b and the readout
    assert len(rows) == 2 and f" {count:,} |" in rows[0] and " 3 |" in rows[0]
    assert text.count("| lem") == 2 and "without memory 0.167" in text and "without memory 0.416" in text


def test_a_table_is_not_lost_to_a_sweep_of_which_nothing_finished(tmp_path: Path) -> None:
    output = tmp_path / "zoo.md"
    output.write_text("an older table")
    words = ["model=lem", "task=adding", "trainer.max_time=x", "trainer=cpu", "--folder", str(tmp_path / "zoo")]
    with pytest.raises(ConfigError, match="no run has finished, see above; .*zoo.md was left as it is"):
        main([*words, "--output", str(output)])
    assert output.read_text() == "an older table"
