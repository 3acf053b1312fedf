"""Models whose forward pass changes nothing in them, so that several threads may use one at the same time."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedModel

STATELESS = frozenset(
    {
        "albert", "bert", "camembert", "distilbert", "electra", "ernie", "modernbert", "mpnet", "rembert", "roberta",
        "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip
"""Model types. Others may keep something: RWKV rescales its weights, long RoPE its frequencies, BigBird switches its
type of attention, and Reformer draws from the random numbers of the process."""


def is_stateless(model: PreTrainedModel) -> bool:
    """Whether a model is of transformers' own code and keeps nothing of a forward pass."""
    config: Any = model.config
    is_own = type(model).__module__.startswith("transformers.models.")
    return is_own and config.model_type in STATELESS and not _changes_frequencies(config)


def _changes_frequencies(config: Any) -> bool:
    """Whether a model computes the frequencies of its rotary positions anew for long rows, and keeps them."""
    described = json.dumps(config.to_dict().get("rope_parameters"), default=str)
    return "dynamic" in described or "longrope" in described
