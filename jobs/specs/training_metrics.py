"""Which metrics an evaluation finds, and whether less or more of one is better. No torch here."""

from __future__ import annotations

from typing import Literal

from jobs.errors import InvalidSpec

Mode = Literal["min", "max"]
"""Whether the least or the largest value of a metric is the best."""

PREFIX = "eval_"
"""What the names of an evaluation's metrics begin with."""
RECIPE_METRICS: dict[str, tuple[str, ...]] = {
    "cnn": ("loss", "accuracy"),
    "ctc": ("loss", "exact", "cer"),
    "gan": ("distance", "spread_distance", "real_score"),
    "lstm": ("loss", "accuracy"),
    "vae": ("loss", "reconstruction", "kl"),
}
"""The metrics of our own modules, `recipes.<name>`, without their prefix."""
LESS_IS_BETTER = (
    "loss", "perplexity", "error", "errors", "error_rate", "wer", "cer", "mer", "mae", "mse", "rmse", "nll", "ece",
    "bpc", "bits_per_byte", "bits_per_character", "distance", "divergence", "kl", "fid",
)  # fmt: skip
"""Last words of the names of metrics of which less is better."""
MORE_IS_BETTER = (
    "accuracy", "acc", "f1", "precision", "recall", "exact", "exact_match", "auc", "auroc", "roc_auc",
    "average_precision", "bleu", "chrf", "meteor", "rouge1", "rouge2", "rougel", "rougelsum", "r2", "mrr", "ndcg",
    "iou", "miou", "dice", "psnr", "ssim", "matthews_correlation", "pearson", "pearsonr", "spearman", "spearmanr",
    "likelihood", "elbo",
)  # fmt: skip
"""Last words of the names of metrics of which more is better."""
_TURNED = ("neg", "negative", "minus", "inverse")
"""Words that turn a metric's direction round: nothing is said of such a name."""


def mode_of(name: str) -> Mode | None:
    """The direction that a metric's name tells by its last words; None where it tells none."""
    name = name.removeprefix(PREFIX).lower().replace("-", "_")
    if any(f"_{word}_" in f"_{name}" for word in _TURNED):
        return None
    if any(f"_{name}".endswith(f"_{word}") for word in LESS_IS_BETTER):
        return "min"
    if any(f"_{name}".endswith(f"_{word}") for word in MORE_IS_BETTER):
        return "max"
    return None


def best_mode(name: str, mode: Mode | None) -> Mode:
    """The direction of `checkpoint.best`.

    Args:
        name: The metric.
        mode: `checkpoint.mode`, where the spec has it.

    Raises:
        InvalidSpec: Neither the spec nor the name says which way is better.
    """
    found = mode or mode_of(name)
    if found is None:
        raise InvalidSpec(
            f"checkpoint.best: whether less or more of '{name}' is better cannot be known from its name; say "
            "checkpoint.mode: min or max",
            param="checkpoint.mode",
        )
    return found


def is_better(value: float, other: float, mode: Mode) -> bool:
    """Whether a metric's value is better than another."""
    return value < other if mode == "min" else value > other
