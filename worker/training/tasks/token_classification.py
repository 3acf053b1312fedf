"""Token classification: lists of words, each word with a class. The first token of a word gets the word's class.

The words are joined by spaces and tokenized as one text, as in inference. A tokenizer that puts the space before a word
into the word's first token (byte-level BPE) would split a single word differently.
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
        raise context.invalid("has a slow tokenizer, which does not say which word a token belongs to")
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
    """Tokenize the rows. Rows without any labelled token are left out: their loss would not be a finite number."""
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
        token_labels = [
            _labels(words_of_tokens(words[place], offsets[place], features.sequence_ids(place)), labels[place])
            for place in range(len(batch))
        ]
        kept = [place for place, each in enumerate(token_labels) if any(label != NO_LABEL for label in each)]
        for place in kept:
            vocabulary.check_row(rows, batch[place][0], features["input_ids"][place])
        if kept:
            columns = {name: [column[place] for place in kept] for name, column in features.items()}
            yield {**columns, "labels": [token_labels[place] for place in kept]}


def _written(words: Sequence[str]) -> list[str]:
    """Return the words that are not blank."""
    return [word for word in words if word.strip()]


def words_of_tokens(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> list[int | None]:
    """Return the index of the word that each token belongs to; None for special tokens.

    Args:
        words: The words of a row.
        offsets: Start and end of each token in the joined text.
        sequences: The index of each token's text; None for special tokens.
    """
    # The word of each character. The space before a word belongs to the word, since its first token often contains it.
    owners: list[int] = []
    for number, word in enumerate(words):
        if word.strip():
            owners += [number] * (len(word) + (1 if owners else 0))
    return [
        None if sequence is None or not owners else owners[min(start, len(owners) - 1)]
        for (start, _), sequence in zip(offsets, sequences, strict=True)
    ]


def _labels(words: list[int | None], labels: Sequence[int | None]) -> list[int]:
    """Return the label of each token: its word's label for the first token of a word, else `NO_LABEL`."""
    before = [None, *words[:-1]]
    firsts = [None if word == last else word for word, last in zip(words, before, strict=True)]
    found = [None if word is None else labels[word] for word in firsts]
    return [NO_LABEL if label is None else label for label in found]


def _metrics(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    has_label = labels != NO_LABEL
    if not has_label.any():
        raise InvalidInput("data.eval: no word has a class", param="data.eval")
    return classification_metrics(predicted[has_label], labels[has_label], num_classes)
