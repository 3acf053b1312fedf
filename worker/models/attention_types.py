"""Models that give up their sparse attention at the first short row, for good: here each batch starts anew.

BigBird computes short batches with full attention and stays with it. A long row's output would depend on whether a
short one came before it, in whatever job.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def keep_attention_type(model: PreTrainedModel) -> None:
    """See to it that a model begins each forward pass with the attention that its config names."""
    changing = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and hasattr(module, "set_attention_type")
    ]
    if not changing:
        return

    def restore(*_: Any) -> None:
        for module in changing:
            if module.attention_type != module.config.attention_type:
                with torch.device("meta"):  # weights that it makes and throws away for those it has
                    module.set_attention_type(module.config.attention_type)

    model.register_forward_pre_hook(restore)
