"""Token classification: lists of words, each word with a class; the first piece of a word carries it.

The words are joined by a space and tokenized as running text, as they are in inference: a tokenizer that keeps the
space before a word in the word's first piece (byte-level BPE) would else cut other pieces for a word alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, EvalPrediction

from jobs.errors import InvalidInput
from worker.training.tasks.classes import Classes
from worker.training.tasks.data import Columns, InputRows, Record, left_out, prepared, row_lengths
from worker.training.tasks.setup import (
    NO_LABEL,
    TaskContext,
    TaskSetup,
    classes_in_words,
    classification_metrics,
    likeliest,
    tokenizer_identity,
)
from worker.training.tasks.vocabulary import Vocabulary

_LACKING = "word with a label"


def build(context: TaskContext, rows: InputRows, eval_rows: InputRows | None) -> TaskSetup:
    """See `BuildTask`."""
    tokenizer = context.tokenizer()
    if not tokenizer.is_fast:
        raise context.invalid("has a slow tokenizer, which does not tell which word a piece is of")
    survey = rows.survey()
    classes = Classes.of(
        survey.labels, context.known_labels, data_names=rows.names, has_head=context.has_head("ForTokenClassification")
    )
    model = context.model(
        AutoModelForTokenClassification,
        **classes.config(),
        **context.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    longest = context.longest(model, tokenizer)
    vocabulary = Vocabulary.of(context, model, tokenizer)
    vocabulary.check_padding()
    vocabulary.check_room(longest)
    recipe = {
        "task": "token-classification", "words": "joined", "ids": classes.ids, "longest": longest,
        "known": vocabulary.num_ids, "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip

    def prepare(source: InputRows) -> partial[Iterator[Columns]]:
        return partial(_tokenize, rows=source, vocabulary=vocabulary, classes=classes, longest=longest)

    train = prepared(rows, survey, prepare(rows), recipe=recipe, folder=context.data_folder)
    vocabulary.warn_of_unknown(rows, train)
    evaluation = None
    if eval_rows is not None:
        eval_survey = eval_rows.survey()
        evaluation = prepared(eval_rows, eval_survey, prepare(eval_rows), recipe=recipe, folder=context.data_folder)
        left_out(eval_rows, eval_survey, evaluation, lacking=_LACKING)
    return TaskSetup(
        model=model,
        processing=tokenizer,
        train=train,
        evaluation=evaluation,
        collate=DataCollatorForTokenClassification(tokenizer),
        metrics=partial(_metrics, num_classes=len(classes.names)),
        reduce_logits=likeliest,
        lengths=lambda: row_lengths(train, "input_ids"),
        digest=survey.digest,
        facts=(classes_in_words(classes.names), *left_out(rows, survey, train, lacking=_LACKING)),
    )


def _tokenize(
    batches: Iterable[list[tuple[int, Record]]],
    *,
    rows: InputRows,
    vocabulary: Vocabulary,
    classes: Classes,
    longest: int | None,
) -> Iterator[Columns]:
    """Rows with at least one piece that has a label: another would teach nothing, and its loss would be no number."""
    for batch in batches:
        labels = [classes.ids_of(rows, row_index, record) for row_index, record in batch]
        words = [record["tokens"] for _, record in batch]
        features: Any = vocabulary.tokenizer(
            [" ".join(_written(each)) for each in words],
            truncation=longest is not None,
            max_length=longest,
            return_offsets_mapping=True,
        )
        offsets = features.pop("offset_mapping")
        told = [
            _labels(words_of_pieces(words[place], offsets[place], features.sequence_ids(place)), labels[place])
            for place in range(len(batch))
        ]
        kept = [place for place, each in enumerate(told) if any(label != NO_LABEL for label in each)]
        for place in kept:
            vocabulary.check_row(rows, batch[place][0], features["input_ids"][place])
        if kept:
            columns = {name: [column[place] for place in kept] for name, column in features.items()}
            yield {**columns, "labels": [told[place] for place in kept]}


def _written(words: Sequence[str]) -> list[str]:
    """The words that leave something in the text."""
    return [word for word in words if word.strip()]


def words_of_pieces(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> list[int | None]:
    """Which word each piece of the joined text is of; None for special tokens.

    Args:
        words: The words of a row.
        offsets: Of each piece, where it begins and ends in the text.
        sequences: Of each piece, the text that it is of; None for special tokens.
    """
    # To each letter of the text its word. The space before a word is the word's: it is often part of its first piece.
    owners: list[int] = []
    for number, word in enumerate(words):
        if word.strip():
            owners += [number] * (len(word) + (1 if owners else 0))
    return [
        None if sequence is None or not owners else owners[min(start, len(owners) - 1)]
        for (start, _), sequence in zip(offsets, sequences, strict=True)
    ]


def _labels(words: list[int | None], labels: Sequence[int | None]) -> list[int]:
    """Of each piece the label of its word, where it is the first of it."""
    before = [None, *words[:-1]]
    firsts = [None if word == last else word for word, last in zip(words, before, strict=True)]
    found = [None if word is None else labels[word] for word in firsts]
    return [NO_LABEL if label is None else label for label in found]


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    told = labels != NO_LABEL
    if not told.any():
        raise InvalidInput("data.eval: no word of it has a class", param="data.eval")
    return classification_metrics(predicted[told], labels[told], num_classes)
