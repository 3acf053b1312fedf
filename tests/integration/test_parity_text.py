"""Texts of mixed lengths, batched by the engine, give the library's outputs for each alone, in every architecture.

No architecture is batched less than possible: the sets below name those that see padding, and all others may pad.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import processors
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from tests.support import tiny
from tests.support.architectures import save_small, small_config
from tests.support.task_kit import load, same, text_rows
from tests.support.through_engine import compute
from worker.inference.padding_verdicts import PadsRows
from worker.models.kernels.packed_attention import restore_attention
from worker.models.texts.padding import Padding

TEXTS = [
    *tiny.SENTENCES[:6],
    "The fox is a dog.",
    "The dog is a fox.",
    "My dog is Ada.",
    "Opening a film of the quick brown fox",
    "list",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2,
]
"""Texts of many lengths, and some of equal length with other words."""


@cache
def wordpiece() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer(160)


@cache
def byte_level() -> PreTrainedTokenizerBase:
    return tiny.byte_level_tokenizer(160)


@cache
def with_ends() -> PreTrainedTokenizerBase:
    """Each text between `<s>` and `</s>`, as BART's kind needs it."""
    tokenizer = tiny.byte_level_tokenizer(160)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids
    )
    return tokenizer


@cache
def ending_left() -> PreTrainedTokenizerBase:
    """XLNet's: each text before `</s>`, padded on the left."""
    usual = tiny.byte_level_tokenizer(160)
    usual.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", usual.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=usual.backend_tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


@cache
def without_pad() -> PreTrainedTokenizerBase:
    tokenizer = tiny.byte_level_tokenizer(160)
    tokenizer.pad_token = None
    return tokenizer


def characters() -> PreTrainedTokenizerBase:
    return CanineTokenizer(model_max_length=160)


Tokenizer = Callable[[], PreTrainedTokenizerBase]
WORDPIECE: dict[str, dict[str, Any]] = {
    "albert": {},
    "bert": {},
    "big_bird": {"block_size": 4, "num_random_blocks": 1, "attention_type": "block_sparse"},
    "camembert": {},
    "convbert": {"conv_kernel_size": 5},
    "data2vec-text": {},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "distilbert": {},
    "electra": {},
    "ernie": {},
    "esm": {},
    "eurobert": {},
    "flaubert": {},
    "fnet": {},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "gte": {},
    "ibert": {},
    "layoutlm": {},
    "longformer": {"attention_window": [8, 8]},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "megatron-bert": {},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {},
    "mpnet": {},
    "nomic_bert": {},
    "nystromformer": {},
    "rembert": {"initializer_range": 0.2},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roformer": {},
    "squeezebert": {},
    "xlm": {},
    "xlm-roberta": {},
    "yoso": {},
}
"""Encoders by their name in transformers, each with config fields that make it small besides the usual ones."""
BYTE_LEVEL: dict[str, dict[str, Any]] = {
    "bloom": {},
    "ctrl": {},
    "gemma2": {},
    "gpt2": {},
    "gpt_neox": {},
    "jamba": {"num_experts": 4},
    "llama": {},
    "mixtral": {"num_local_experts": 4},
    "opt": {"word_embed_proj_dim": 32},
    "phi": {},
    "qwen3": {},
}
OTHERS: dict[str, tuple[str, Tokenizer, dict[str, Any]]] = {
    "bart": ("bart", with_ends, {}),
    "canine": (
        "canine",
        characters,
        {"num_hash_functions": 4, "num_hash_buckets": 256, "local_transformer_stride": 16, "vocab_size": None},
    ),
    "gpt2 without a pad token": ("gpt2", without_pad, {}),
    "gpt2 whose pad token ends texts": ("gpt2", byte_level, {"pad_token_id": 2}),
    "llama without a pad token": ("llama", without_pad, {}),
    "mbart": ("mbart", with_ends, {}),
    "xlnet": ("xlnet", ending_left, {"max_position_embeddings": None}),
}
CASES: dict[str, tuple[str, Tokenizer, dict[str, Any]]] = {
    **{name: (name, wordpiece, own) for name, own in WORDPIECE.items()},
    **{name: (name, byte_level, own) for name, own in BYTE_LEVEL.items()},
    **OTHERS,
}
SEE_PADDING = {"big_bird", "canine", "convbert", "fnet", "nystromformer", "yoso"}
"""Rows of these are batched with rows of equal length only."""
PAD_LEFT = {
    "gpt2 without a pad token", "gpt2 whose pad token ends texts", "llama without a pad token", "xlnet",
}  # fmt: skip
PACKED = {
    "bert", "camembert", "ctrl", "data2vec-text", "distilbert", "electra", "ernie", "esm", "eurobert", "gpt2",
    "gpt2 without a pad token", "gpt_neox", "gte", "llama", "llama without a pad token", "mixtral", "modernbert",
    "nomic_bert", "opt", "phi", "qwen3", "roberta", "roberta-prelayernorm", "xlm-roberta",
}  # fmt: skip
"""Rows of these can be computed without padding. The others have attention of their own, add biases to its scores, look
at neighbouring tokens, or have a head that takes vectors which are already picked from the rows."""
NOT_IN_16_BITS = {
    "fnet",  # the library has no such Fourier transform on a CPU
    "xlnet",  # nor does it multiply its positions then
    "big_bird",  # its sparse attention changes less than 16 bits do
    "ibert",  # a text that contains the padding token gives other outputs in a batch with a longer one
    "mobilebert",  # reads the vector of padding, which is zero, so that no difference can be seen
}


def _folder(folder: Path, name: str) -> tuple[Path, Any]:
    model_type, tokenizer, own = CASES[name]
    made, architecture = tokenizer(), getattr(transformers, CLASSIFIERS[model_type])
    return folder, save_small(folder, architecture, small_config(model_type, made, **own), made)


def _alone(model: Any, tokenizer: Any, text: str) -> Any:
    # BigBird stays with full attention once it saw a short text; alone means before that.
    fresh = copy.deepcopy(model) if hasattr(model.base_model, "set_attention_type") else model
    return pipeline("text-classification", model=fresh, tokenizer=tokenizer)(text, top_k=None)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_mixed_lengths_equal_the_library_row_by_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "canine":  # each of its tokenizers takes seconds to list all of Unicode, twice
        vocabulary = {chr(point): point for point in range(0x110000)}
        monkeypatch.setattr(CanineTokenizer, "get_vocab", lambda _: vocabulary)
    folder, model = _folder(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [_alone(model, tokenizer, text) for text in TEXTS]
    task_model = load("text-classification", folder, {"top_k": None})
    computed = compute(task_model, text_rows(TEXTS))
    assert all(same(one, other) for one, other in zip(computed.outputs, expected, strict=True))
    assert (
        len({one[0]["label"] for one in expected}) > 1
        or max(abs(one[0]["score"] - expected[0][0]["score"]) for one in expected) > 0.05
    ), "equal answers to all texts would show nothing"
    padding = Padding.EQUAL_LENGTHS if name in SEE_PADDING else Padding.LEFT if name in PAD_LEFT else Padding.RIGHT
    assert isinstance(task_model, PadsRows)
    assert task_model.tokens.padding == padding
    assert computed.is_shared
    assert computed.is_mixed is (padding != Padding.EQUAL_LENGTHS)
    task_model.tokens.padding = task_model.probe_padding(packs=True)
    assert task_model.tokens.padding == (Padding.PACKED if name in PACKED else padding)
    if name in PACKED:
        computed = compute(task_model, text_rows(TEXTS))
        assert computed.is_mixed
        assert all(same(one, other) for one, other in zip(computed.outputs, expected, strict=True))
        restore_attention(task_model.model)
    if name not in NOT_IN_16_BITS:
        task_model.model.to(torch.bfloat16)
        assert task_model.probe_padding() == padding
