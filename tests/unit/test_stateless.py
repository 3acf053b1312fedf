"""A model that several threads use at the same time keeps nothing of a forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from worker.models.stateless import STATELESS, is_stateless

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "embedding_size": 16, "input_embedding_size": 16, "dim": 16, "hidden_dim": 32,
    "n_heads": 2, "n_layers": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8,
    "global_attn_every_n_layers": 2, "attention_hidden_size": 16, "rescale_every": 1, "q_groups": 1, "k_groups": 1,
    "v_groups": 1, "post_attention_groups": 1,
    "intermediate_groups": 1, "output_groups": 1,
}  # fmt: skip


def tiny(model_type: str) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type)
    for name in SIZES.keys() & set(config.to_dict()):
        setattr(config, name, SIZES[name])
    model: PreTrainedModel = AutoModel.from_config(config)
    return model.eval()


def state(model: PreTrainedModel) -> dict[str, Any]:
    """What the modules and the config hold, and how often each tensor was written."""
    found: dict[str, Any] = {"config": model.config.to_json_string()}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        found[name] = {key: id(value) for key, value in plain.items() if key != "config"}
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        found[name + ".tensors"] = [(id(tensor), tensor._version) for tensor in tensors]
    return found


def run(model: PreTrainedModel, num_tokens: int) -> None:
    ids = torch.randint(3, 64, (2, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    mask = torch.ones_like(ids)
    mask[1, num_tokens // 2 :] = 0
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("model_type", sorted(STATELESS))
def test_a_forward_pass_leaves_the_model_as_it_was(model_type: str) -> None:
    model = tiny(model_type)
    assert is_stateless(model)
    before = state(model)
    for num_tokens in (5, 48, 9):
        run(model, num_tokens)
    assert state(model) == before


@pytest.mark.parametrize("model_type", ["rwkv", "big_bird"])
def test_a_model_that_changes_in_a_forward_pass_is_seen_by_this_test(model_type: str) -> None:
    model = tiny(model_type)
    assert not is_stateless(model)
    before = state(model)
    with torch.inference_mode():
        model(input_ids=torch.full((1, 5), 3))
    assert state(model) != before


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_rows_before_are_not_stateless(rope_type: str) -> None:
    model = tiny("modernbert")
    assert is_stateless(model)
    model.config.rope_parameters["full_attention"]["rope_type"] = rope_type
    assert not is_stateless(model)


def test_a_class_of_the_users_own_is_not_trusted() -> None:
    class Own(type(tiny("bert"))):  # type: ignore[misc]
        """Its forward may keep anything."""

    config = tiny("bert").config
    assert not is_stateless(Own(config))
