"""Adapters merged into a model's weights: the exported model computes the outputs of the evaluated one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from jobs.specs.training import LoraSpec
from worker.training.tasks.adapters import merged
from worker.training.tasks.text_generation import with_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks by the former name
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
TOKENS = torch.tensor([[3, 14, 15, 9, 2, 6]])


def llama(*, is_tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=is_tied,
        )
    )


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize(
    ("model", "target_modules", "stays_tied"),
    [
        (llama(), ["lm_head", "q_proj"], False),
        (llama(), ["embed_tokens", "q_proj"], False),
        (llama(), ["lm_head", "embed_tokens"], False),
        (llama(), "all-linear", True),
        (llama(is_tied=False), ["lm_head", "embed_tokens"], False),
        (gpt2(), ["lm_head"], False),
        (gpt2(), ["wte", "c_attn"], False),
        (gpt2(), ["c_attn"], True),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(getattr(value, "base_model_prefix", value)),
)
def test_a_delivered_model_computes_what_was_evaluated(
    tmp_path: Path, model: PreTrainedModel, target_modules: list[str] | str, stays_tied: bool
) -> None:
    adapted = with_adapters(model, LoraSpec(r=2, target_modules=target_modules))
    unchanged = logits(adapted)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    evaluated = logits(adapted)
    assert not torch.allclose(evaluated, unchanged, atol=0.01), "the adapters do something"
    merged(adapted).save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.allclose(logits(loaded), evaluated, atol=1e-4)
    assert loaded.config.tie_word_embeddings is stays_tied
