"""Prompts of mixed lengths are gone on with as each alone is, also by decoders that see padding on the left."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

from tests.support import tiny
from tests.support.architectures import save_small, small_config
from tests.support.task_kit import load, text_rows
from tests.support.through_engine import compute
from worker.inference.tasks.text_generation import TextGeneration

PROMPTS = ["The fox", "My name is Ada and", "a", "Opening a film of the quick brown fox jumps over the", "x y z"]
SEE_PADDING = ("bart", "marian", "pegasus")
BEAR_PADDING = ("bloom", "gpt2", "opt")


@pytest.mark.parametrize("model_type", [*SEE_PADDING, *BEAR_PADDING])
def test_mixed_prompts_equal_generate_row_by_row(model_type: str, tmp_path: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer(160)
    own = {"word_embed_proj_dim": 32} if model_type == "opt" else {}
    config = small_config(model_type, tokenizer, **own)
    model = save_small(tmp_path, getattr(transformers, DECODERS[model_type]), config, tokenizer)
    expected = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    task_model = load("text-generation", tmp_path, {"max_new_tokens": 6})
    assert isinstance(task_model, TextGeneration)
    computed = compute(task_model, text_rows(PROMPTS))
    assert [output[0]["generated_text"] for output in computed.outputs] == expected
    assert task_model._engine._is_solo is (model_type in SEE_PADDING)
