"""Speech recognition: recognises "letters" that are tones; the training data do not say when each one sounds.

Graves, Fernández, Gomez and Schmidhuber, "Connectionist Temporal Classification" (2006).
B: batch, T: frames, U: frames after the convolution, F: frequencies, H: hidden units, K: letters and the blank,
N: letters of an utterance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Adam

from jobs.specs.training_options.recipe_options import CtcOptions, read_options
from worker.training.modules.recipes.tones import BLANK, LETTERS, NUM_FREQUENCIES, SAMPLE_RATE, Batch, Tones, collate
from worker.training.modules.user_module import Parts, Phase, Setup
from worker.training.tasks.edit_distance import edits

_STRIDE = 2
"""Frames per frame after the convolution. A letter and its pause remain several frames long, as CTC needs."""
_TRAIN, _HELD_OUT = 0, 1


class Recogniser(nn.Module):
    """A convolution over frames, a unidirectional GRU, and a linear layer. Padding changes no output before it."""

    def __init__(self, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(NUM_FREQUENCIES, channels, kernel_size=5, stride=_STRIDE, padding=2)
        self.gru = nn.GRU(channels, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 1 + len(LETTERS))

    def forward(self, features_BTF: torch.Tensor) -> torch.Tensor:
        """Compute log-probabilities (B, U, K), in float32, from features (B, T, F)."""
        maps_BUC = functional.relu(self.conv(features_BTF.transpose(1, 2))).transpose(1, 2)
        states_BUH, _ = self.gru(maps_BUC)
        return functional.log_softmax(self.linear(states_BUH).float(), dim=-1)


def build(setup: Setup) -> Parts:
    """Build the recipe; see `CtcOptions`.

    Raises:
        ValueError: An option is invalid.
    """
    options = read_options(CtcOptions, setup.options)
    num_letters = (options.min_letters, options.max_letters)
    model = Recogniser(channels=options.channels, hidden=options.hidden)
    # An utterance with more letters than frames cannot be aligned; its infinite loss must not end the training.
    ctc_loss = nn.CTCLoss(blank=BLANK, zero_infinity=True)

    def loss_of(log_probs_BUK: torch.Tensor, batch: Batch) -> torch.Tensor:
        _, num_frames_B, labels_BN, num_letters_B = batch
        # On the CPU, since on a GPU the gradient is summed in any order, so that it would not resume bit for bit.
        loss: torch.Tensor = ctc_loss(
            log_probs_BUK.transpose(0, 1).cpu(), labels_BN.cpu(), _shortened(num_frames_B).cpu(), num_letters_B.cpu()
        )
        return loss.to(log_probs_BUK.device)

    def loss(batch: Batch) -> torch.Tensor:
        return loss_of(model(batch[0]), batch)

    def evaluate(batch: Batch) -> Mapping[str, torch.Tensor]:
        features_BTF, num_frames_B, labels_BN, num_letters_B = batch
        log_probs_BUK = model(features_BTF)
        recognized = decode(log_probs_BUK, _shortened(num_frames_B))
        right = [row[:length] for row, length in zip(labels_BN.tolist(), num_letters_B.tolist(), strict=True)]
        rates = [edits(one, other) / len(other) for one, other in zip(recognized, right, strict=True)]
        errors_B = torch.tensor(rates, device=log_probs_BUK.device)
        return {
            "loss": loss_of(log_probs_BUK, batch),
            "exact": (errors_B == 0).float().mean(),
            "cer": errors_B.mean(),
        }

    def finish(folder: Path) -> None:
        (folder / "letters.txt").write_text("".join(f"{letter}\n" for letter in LETTERS), encoding="utf-8")

    return Parts(
        models={"model": model},
        phases=[Phase(optimizer=Adam(model.parameters(), lr=options.learning_rate), loss=loss)],
        train=Tones(options.rows, num_letters=num_letters, noise=options.noise, part=_TRAIN),
        collate=collate,
        eval_data=Tones(options.eval_rows, num_letters=num_letters, noise=options.noise, part=_HELD_OUT),
        evaluate=evaluate,
        finish=finish,
        facts=[
            f"Recognizes the letters {LETTERS[0]} to {LETTERS[-1]}, each a tone, in synthetic utterances of "
            f"{SAMPLE_RATE:,} samples per second.",
            "Its output 0 is CTC's blank; output n is line n of letters.txt.",
            "`eval_exact` is the share of utterances that are decoded without an error, and `eval_cer` is the "
            "number of edits per letter, averaged over the utterances.",
        ],
    )


def decode(log_probs_BUK: torch.Tensor, num_frames_B: torch.Tensor) -> list[list[int]]:
    """Return each row's labels by its best path: the likeliest label of each frame, less repetitions and blanks.

    Args:
        log_probs_BUK: The model's log-probabilities.
        num_frames_B: Number of frames of each row; later frames are padding.
    """
    decoded: list[list[int]] = []
    for path, length in zip(log_probs_BUK.argmax(dim=-1).tolist(), num_frames_B.tolist(), strict=True):
        frames = path[:length]
        changes = [label for place, label in enumerate(frames) if place == 0 or label != frames[place - 1]]
        decoded.append([label for label in changes if label != BLANK])
    return decoded


def _shortened(num_frames_B: torch.Tensor) -> torch.Tensor:
    """Return the numbers of frames after the convolution."""
    return (num_frames_B - 1) // _STRIDE + 1
