"""Small models of any transformers architecture: the real config and model classes with large random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests.support import tiny

_SMALL: Mapping[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32, "embed_dim": 32,
    "input_embedding_size": 32, "output_embedding_size": 32,
    "num_hidden_layers": 2, "n_layers": 2, "n_layer": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 4, "n_heads": 4, "n_head": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "hidden_dim": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "n_inner": 64, "d_ff": 64, "d_inner": 64, "d_kv": 8, "head_dim": 8, "d_head": 8, "dff": 64,
    "max_position_embeddings": 160, "n_positions": 160,
    "initializer_range": 0.3, "init_std": 0.3, "initializer_factor": 8.0,
}  # fmt: skip
"""Small sizes, by the names that configs use for them. Weights are large, so that differences show in outputs."""
_TOKENS = ("pad", "bos", "eos", "cls", "sep")


def small_config(model_type: str, tokenizer: PreTrainedTokenizerBase | None = None, **own: Any) -> PreTrainedConfig:
    """A config of an architecture with small sizes and the tokenizer's ids.

    Args:
        model_type: The name of the architecture in transformers.
        tokenizer: The tokenizer of a text model.
        own: Further arguments of the config, which take precedence; None keeps the config's own default for a size.
    """
    kind = CONFIG_MAPPING[model_type]
    known = kind()
    sizes: dict[str, Any] = {name: value for name, value in _SMALL.items() if hasattr(known, name)}
    if tokenizer is not None:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _TOKENS}
        sizes |= {name: value for name, value in ids.items() if hasattr(known, name)}
        sizes["vocab_size"] = len(tokenizer)
    left_out = {name for name, value in own.items() if value is None}
    return kind(**{name: value for name, value in {**sizes, **tiny.ABC, **own}.items() if name not in left_out})


def save_small(
    folder: Path, model_class: type[PreTrainedModel], config: PreTrainedConfig, processor: Any
) -> PreTrainedModel:
    """Make a model with seeded weights, save it with its processor, and return it in evaluation mode."""
    with tiny.seeded(0):
        model = model_class(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()
