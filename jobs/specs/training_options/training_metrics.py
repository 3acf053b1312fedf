"""The metrics of evaluations, and whether a smaller or larger value is better. Must not import torch."""

from __future__ import annotations

from typing import Literal

from jobs.errors import InvalidSpec

Mode = Literal["min", "max"]
"""Whether the least or the largest value of a metric is the best."""

PREFIX = "eval_"
"""Prefix of the names of an evaluation's metrics."""
RECIPE_METRICS: dict[str, tuple[str, ...]] = {
    "cnn": ("loss", "accuracy"),
    "ctc": ("loss", "exact", "cer"),
    "gan": ("distance", "spread_distance", "real_score"),
    "lstm": ("loss", "accuracy"),
    "vae": ("loss", "reconstruction", "kl"),
}
"""Recipe -> the names of its metrics, without the prefix."""
LESS_IS_BETTER = (
    "loss", "perplexity", "error", "errors", "error_rate", "wer", "cer", "mer", "mae", "mse", "rmse", "nll", "ece",
    "bpc", "bits_per_byte", "bits_per_character", "distance", "divergence", "kl", "fid",
)  # fmt: skip
"""Last words of names of metrics for which smaller values are better."""
MORE_IS_BETTER = (
    "accuracy", "acc", "f1", "precision", "recall", "exact", "exact_match", "auc", "auroc", "roc_auc",
    "average_precision", "bleu", "chrf", "meteor", "rouge1", "rouge2", "rougel", "rougelsum", "r2", "mrr", "ndcg",
    "iou", "miou", "dice", "psnr", "ssim", "matthews_correlation", "pearson", "pearsonr", "spearman", "spearmanr",
    "likelihood", "elbo",
)  # fmt: skip
"""Last words of names of metrics for which larger values are better."""
_REVERSING = ("neg", "negative", "minus", "inverse")
"""Words that reverse a metric's direction. The direction of a name with such a word is unknown."""


def mode_of(name: str) -> Mode | None:
    """Return the direction of a metric according to the last words of its name; None if it is unknown."""
    name = name.removeprefix(PREFIX).lower().replace("-", "_")
    if any(f"_{word}_" in f"_{name}" for word in _REVERSING):
        return None
    if any(f"_{name}".endswith(f"_{word}") for word in LESS_IS_BETTER):
        return "min"
    if any(f"_{name}".endswith(f"_{word}") for word in MORE_IS_BETTER):
        return "max"
    return None


def best_mode(name: str, mode: Mode | None) -> Mode:
    """Return the direction of `checkpoint.best`.

    Args:
        name: The metric.
        mode: `checkpoint.mode`, if the spec sets it.

    Raises:
        InvalidSpec: Neither the spec nor the metric's name says which direction is better.
    """
    found = mode or mode_of(name)
    if found is None:
        raise InvalidSpec(
            f"checkpoint.best: the name '{name}' does not say whether smaller or larger values are better; set "
            "checkpoint.mode to min or max",
            param="checkpoint.mode",
        )
    return found


def is_better(value: float, other: float, mode: Mode) -> bool:
    """Return whether a metric's value is better than another."""
    return value < other if mode == "min" else value > other
