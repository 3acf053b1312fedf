"""Text classification: each row is a text, or a pair of texts, with one class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from worker.training.tasks.classes import Classes
from worker.training.tasks.data import Columns, InputRows, Record, left_out, prepared, row_lengths
from worker.training.tasks.setup import (
    TaskContext,
    TaskSetup,
    classes_in_words,
    evaluate_classes,
    likeliest,
    tokenizer_identity,
)
from worker.training.tasks.vocabulary import Vocabulary


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    tokenizer = context.tokenizer()
    survey = rows.survey()
    classes = Classes.of(
        survey.labels,
        context.known_labels,
        data_names=rows.names,
        has_head=context.has_head("ForSequenceClassification"),
    )
    model = context.model(
        AutoModelForSequenceClassification,
        **classes.config(),
        problem_type="single_label_classification",
        **context.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id  # decoders need it to find the last token before the padding
    longest = context.longest(model, tokenizer)
    vocabulary = Vocabulary.of(context, model, tokenizer)
    vocabulary.check_padding()
    vocabulary.check_room(longest)
    recipe = {
        "task": "text-classification", "ids": classes.ids, "longest": longest, "known": vocabulary.num_ids,
        "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip

    def prepare(source: InputRows) -> partial[Iterator[Columns]]:
        return partial(_tokenize, rows=source, vocabulary=vocabulary, classes=classes, longest=longest)

    train = prepared(rows, survey, prepare(rows), recipe=recipe, folder=context.data_folder)
    vocabulary.warn_of_unknown(rows, train)
    evaluation = None
    if eval_rows is not None:
        eval_survey = eval_rows.survey()
        evaluation = prepared(eval_rows, eval_survey, prepare(eval_rows), recipe=recipe, folder=context.data_folder)
        left_out(eval_rows, eval_survey, evaluation, lacking="label")
    return TaskSetup(
        model=model,
        processing=tokenizer,
        train=train,
        evaluation=evaluation,
        collate=DataCollatorWithPadding(tokenizer),
        metrics=partial(evaluate_classes, num_classes=len(classes.names)),
        reduce_logits=likeliest,
        lengths=lambda: row_lengths(train, "input_ids"),
        digest=survey.digest,
        facts=(classes_in_words(classes.names), *left_out(rows, survey, train, lacking="label")),
    )


def _tokenize(
    batches: Iterable[list[tuple[int, Record]]],
    *,
    rows: InputRows,
    vocabulary: Vocabulary,
    classes: Classes,
    longest: int | None,
) -> Iterator[Columns]:
    """Tokenize the rows. Rows without a class are left out."""
    for batch in batches:
        kept: list[tuple[int, Record]] = []
        labels: list[int] = []
        for row_index, record in batch:
            (label,) = classes.ids_of(rows, row_index, record)
            if label is not None:
                kept.append((row_index, record))
                labels.append(label)
        if not kept:
            continue
        texts = [
            (record["text"], record["text_pair"]) if "text_pair" in record else record["text"] for _, record in kept
        ]
        features: Any = vocabulary.tokenizer(texts, truncation=longest is not None, max_length=longest)
        for (row_index, _), ids in zip(kept, features["input_ids"], strict=True):
            vocabulary.check_row(rows, row_index, ids)
        yield {**features, "labels": labels}
