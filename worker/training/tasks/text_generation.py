"""Causal language modelling: texts, joined by the token that ends one and cut into blocks of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from jobs.errors import InvalidInput
from jobs.training_spec import LoraSpec
from worker.inference.tasks.tokens import longest_row
from worker.training.data import Record, prepared
from worker.training.learning import Learning, Origin, tokenizer_identity

_BLOCK_TOKENS = 1024
"""Where neither the spec nor the model says less."""


def build(origin: Origin, records: Sequence[Record], judged: Sequence[Record] | None) -> Learning:
    """See `BuildTask`."""
    tokenizer = origin.tokenizer()
    end = tokenizer.eos_token_id
    model = origin.model(
        AutoModelForCausalLM,
        **origin.from_scratch(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
        ),
    )
    limits = (origin.spec.data.max_length, longest_row(model, tokenizer), _BLOCK_TOKENS)
    block_tokens = min(limit for limit in limits if limit)
    if origin.spec.lora is not None:
        model = _with_adapters(model, origin.spec.lora)
    recipe = {"task": "text-generation", "block_tokens": block_tokens, "tokenizer": tokenizer_identity(tokenizer)}
    cache = origin.plan.cache

    def prepare(rows: Sequence[Record], param: str) -> Dataset:
        cut = partial(_blocks, tokenizer=tokenizer, end=end, block_tokens=block_tokens, param=param)
        return prepared(rows, cut, recipe=recipe, cache=cache)

    return Learning(
        model=model,
        processing=tokenizer,
        train=prepare(records, "data.train"),
        evaluation=None if judged is None else prepare(judged, "data.eval"),
        collate=_collate,
        facts=(f"{len(records):,} texts in blocks of {block_tokens} tokens",),
    )


def _with_adapters(model: PreTrainedModel, lora: LoraSpec) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    return get_peft_model(model, config)


def _blocks(records: Sequence[Record], *, tokenizer: Any, end: int | None, block_tokens: int, param: str) -> Dataset:
    """The texts' tokens in blocks; what is left over at the end is a block of its own where it is the only one."""
    ids = tokenizer([record["text"] for record in records], add_special_tokens=True)["input_ids"]
    closed = ([*row, end] if end is not None and row[-1:] != [end] else row for row in ids)
    tokens = list(chain.from_iterable(closed))
    if len(tokens) < 2:
        raise InvalidInput(f"{param}: its texts have no tokens to learn from", param=param)
    block_tokens = min(block_tokens, len(tokens))
    starts = range(0, len(tokens) - block_tokens + 1, block_tokens)
    return Dataset.from_dict({"input_ids": [tokens[start : start + block_tokens] for start in starts]})


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens_BT = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "labels": tokens_BT.clone()}
