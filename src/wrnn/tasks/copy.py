"""The copy task: see ten symbols, wait, give them back in order."""

import torch
import torch.nn.functional as F

from wrnn.checks import one_of, whole_number
from wrnn.tasks.base import SequenceBatch
from wrnn.tasks.synthetic import SyntheticTask

RECALL_LENGTH = 10
NUM_CLASSES = 10  # 0 blank, 1 to 8 symbols, 9 the marker that asks for the recall
LAYOUTS = ("text", "code")


def make_batch(num_sequences: int, delay: int, layout: str, random: torch.Generator) -> SequenceBatch:
    """Draw copy sequences: inputs (B, T, 10) one-hot float32, targets (B, T) int64.

    `layout=text`, as the paper describes it; T = delay + 20, and the recall starts at the marker:

        inputs   a b c d e f g h i j  0 ... 0  9 0 0 0 0 0 0 0 0 0
        targets  0 0 0 0 0 0 0 0 0 0  0 ... 0  a b c d e f g h i j

    `layout=code`, as it was released; T = delay + 10, the recall starts one step after the marker, and at delay 10
    the marker overwrites the tenth symbol, which is then a 9 in the target too:

        inputs   a b c d e f g h i j  0 ... 9  0 0 0 0 0 0 0 0 0 0
        targets  0 0 0 0 0 0 0 0 0 0  0 ... 0  a b c d e f g h i j

    The released sweeps use delay 10, 20, 50, 100, 500 in that layout for what the paper labels T = 0, 10, 30, 80, 480.
    """
    symbols_BR = torch.randint(1, 9, (num_sequences, RECALL_LENGTH), generator=random)
    length = delay + (20 if layout == "text" else 10)
    inputs_BT = torch.zeros(num_sequences, length, dtype=torch.int64)
    inputs_BT[:, :RECALL_LENGTH] = symbols_BR
    inputs_BT[:, length - (10 if layout == "text" else 11)] = 9
    targets_BT = torch.zeros_like(inputs_BT)
    targets_BT[:, -RECALL_LENGTH:] = inputs_BT[:, :RECALL_LENGTH]
    return SequenceBatch(F.one_hot(inputs_BT, NUM_CLASSES).float(), targets_BT)


class Copy(SyntheticTask):
    """The copy task of Keller et al. 2024, section 3.

    A model that ignores the symbols scores a cross-entropy of 10 ln 8 / T.

    Args:
        delay: blanks between the symbols and the marker (the paper's T) in the text layout; in the code layout the
            argument of the released generator, at least 10.
        layout: `text` or `code`, see `make_batch`.
        batch_size, eval_batch_size, batches_per_epoch, num_val, num_test, order_seed, eval_seed: see `SyntheticTask`.
    """

    def __init__(
        self,
        delay: int,
        layout: str = "text",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        batches_per_epoch: int = 500,
        num_val: int = 1000,
        num_test: int = 10_000,
        order_seed: int = 0,
        eval_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, batches_per_epoch, num_val, num_test, order_seed, eval_seed)
        self.layout = one_of("task.datamodule.layout", layout, LAYOUTS)
        self.delay = whole_number("task.datamodule.delay", delay, minimum=0 if layout == "text" else 10)

    @property
    def input_size(self) -> int:
        """10, one-hot."""
        return NUM_CLASSES

    @property
    def output_size(self) -> int:
        """10 logits; the paper keeps the ninth symbol's, which the text layout never asks for."""
        return NUM_CLASSES

    @property
    def sequence_length(self) -> int:
        """T."""
        return self.delay + (20 if self.layout == "text" else 10)

    def generate(self, num_sequences: int, random: torch.Generator) -> SequenceBatch:
        """See `make_batch`."""
        return make_batch(num_sequences, self.delay, self.layout, random)
