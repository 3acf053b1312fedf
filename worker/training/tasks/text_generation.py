"""Causal language modelling: texts, each ended by the end token, joined, and cut into blocks of equal length."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, EvalPrediction, PreTrainedModel

from jobs.errors import InvalidSpec
from jobs.messages import one_line
from jobs.specs.training import LoraSpec
from jobs.specs.training_options.training_arguments import TrainingArguments
from worker.training.tasks.data import Columns, InputRows, Record, prepared
from worker.training.tasks.setup import TaskContext, TaskSetup, tokenizer_identity
from worker.training.tasks.vocabulary import Vocabulary

_BLOCK_TOKENS = 1024
"""Length of a block if neither the spec nor the model sets a smaller one."""
_MOST_BLOCK_TOKENS = 2**20
NLL = "nll"
"""Name of the metric: the mean negative log likelihood of a token. Used if the training loss is a different number."""


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    tokenizer = context.tokenizer()
    end = tokenizer.eos_token_id
    model = context.model(
        AutoModelForCausalLM,
        **context.from_scratch(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
        ),
    )
    assert context.spec.data is not None
    is_set = context.spec.data.max_length is not None
    most = _MOST_BLOCK_TOKENS if is_set else _BLOCK_TOKENS
    block_tokens = min(most, context.longest(model, tokenizer) or most)
    vocabulary = Vocabulary.of(context, model, tokenizer)
    if context.spec.lora is not None:
        model = with_adapters(model, context.spec.lora)
    recipe = {
        "task": "text-generation", "block_tokens": block_tokens, "known": vocabulary.num_ids,
        "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip

    def prepare(source: InputRows) -> partial[Iterator[Columns]]:
        return partial(_blocks, rows=source, vocabulary=vocabulary, end=end, block_tokens=block_tokens)

    survey = rows.survey()
    train = prepared(rows, survey, prepare(rows), recipe=recipe, folder=context.data_folder)
    vocabulary.warn_of_unknown(rows, train)
    evaluation = None
    if eval_rows is not None:
        evaluation = prepared(
            eval_rows, eval_rows.survey(), prepare(eval_rows), recipe=recipe, folder=context.data_folder
        )
    return TaskSetup(
        model=model,
        processing=tokenizer,
        train=train,
        evaluation=evaluation,
        collate=_collate,
        **_nll_metrics(context.spec.training_arguments),
        digest=survey.digest,
        facts=(f"{survey.num_rows:,} texts in blocks of {block_tokens} tokens",),
    )


def with_adapters(model: PreTrainedModel, lora: LoraSpec) -> Any:
    """Wrap a model so that adapters are trained in place of its own weights.

    Raises:
        InvalidSpec: The model has none of the target modules.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    try:
        with warnings.catch_warnings():  # the warning is about tied weights, which `adapters.merged` handles
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            return get_peft_model(model, config)
    except ValueError as error:
        raise InvalidSpec(f"lora.target_modules: {one_line(error)}", param="lora.target_modules") from error


def _blocks(
    batches: Iterable[list[tuple[int, Record]]],
    *,
    rows: InputRows,
    vocabulary: Vocabulary,
    end: int | None,
    block_tokens: int,
) -> Iterator[Columns]:
    """Yield the texts' tokens in blocks. An incomplete block at the end is dropped, unless it is the only one."""
    tokens: list[int] = []
    has_block = False
    for batch in batches:
        found = vocabulary.tokenizer([record["text"] for _, record in batch])["input_ids"]
        for (row_index, _), ids in zip(batch, found, strict=True):
            if end is not None and ids[-1:] != [end]:
                ids.append(end)
            if ids:  # an empty text has no tokens
                vocabulary.check_row(rows, row_index, ids)
            tokens += ids
        whole = len(tokens) // block_tokens * block_tokens
        if whole:
            has_block = True
            starts = range(0, whole, block_tokens)
            yield {"input_ids": [tokens[start : start + block_tokens] for start in starts]}
            tokens = tokens[whole:]
    if not has_block and len(tokens) > 1:
        yield {"input_ids": [tokens]}


def _nll_metrics(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the functions that compute the likelihood of texts, if label smoothing makes the loss another number."""
    return {"reduce_logits": row_nll, "metrics": mean_nll} if arguments.label_smoothing_factor else {}


def row_nll(logits: Any, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log likelihood of each block's tokens, (B,); see `TaskSetup.reduce_logits`."""
    logits_BTV = (logits[0] if isinstance(logits, tuple) else logits)[:, :-1].float()
    nll_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), labels_BT[:, 1:], reduction="none")
    return nll_BT.mean(dim=1)


def mean_nll(prediction: EvalPrediction) -> dict[str, float]:
    """Return the mean over all blocks, which have equal length."""
    return {NLL: float(np.asarray(prediction.predictions, dtype=np.float64).mean())}


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens_BT = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "labels": tokens_BT.clone()}
