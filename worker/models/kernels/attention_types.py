"""Restore the attention type of models that permanently switch to full attention at the first short batch.

BigBird does that. Without this hook, a long row's output would depend on whether a short batch came before it, even in
another job.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def keep_attention_type(model: PreTrainedModel) -> None:
    """Make a model start each forward pass with the attention type in its config."""
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
                with torch.device("meta"):  # it creates weights and replaces them with the existing ones
                    module.set_attention_type(module.config.attention_type)

    model.register_forward_pre_hook(restore)
