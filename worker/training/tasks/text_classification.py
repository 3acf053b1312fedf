"""Text classification: texts, or pairs of them, each with one class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from worker.training.data import Columns, InputRows, Record, label_names, prepared, row_lengths
from worker.training.learning import Learning, Origin, classes_in_words, judge_classes, likeliest, tokenizer_identity


def build(origin: Origin, rows: InputRows, judged: InputRows | None) -> Learning:
    """See `BuildTask`."""
    tokenizer = origin.tokenizer()
    survey = rows.survey("label")
    names = label_names(survey.labels, origin.known_labels)
    ids = {name: number for number, name in enumerate(names)}
    model = origin.model(
        AutoModelForSequenceClassification,
        id2label=dict(enumerate(names)),
        label2id=ids,
        problem_type="single_label_classification",
        **origin.from_scratch(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
    )
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before the padding
    longest = origin.longest(model, tokenizer)
    recipe = {
        "task": "text-classification", "ids": ids, "longest": longest, "tokenizer": tokenizer_identity(tokenizer),
    }  # fmt: skip
    prepare = partial(_tokenize, tokenizer=tokenizer, ids=ids, longest=longest)
    train = prepared(rows, survey, prepare, recipe=recipe, folder=origin.data_folder)
    evaluation = None
    if judged is not None:
        evaluation = prepared(judged, judged.survey(), prepare, recipe=recipe, folder=origin.data_folder)
    return Learning(
        model=model,
        processing=tokenizer,
        train=train,
        evaluation=evaluation,
        collate=DataCollatorWithPadding(tokenizer),
        metrics=partial(judge_classes, num_classes=len(names)),
        reduce_logits=likeliest,
        lengths=lambda: row_lengths(train, "input_ids"),
        digest=survey.digest,
        facts=(classes_in_words(names),),
    )


def _tokenize(
    batches: Iterable[list[tuple[int, Record]]], *, tokenizer: Any, ids: dict[str, int], longest: int | None
) -> Iterator[Columns]:
    for batch in batches:
        texts = [record["text"] for _, record in batch]
        pairs = [record["text_pair"] for _, record in batch] if "text_pair" in batch[0][1] else None
        features = tokenizer(texts, pairs, truncation=longest is not None, max_length=longest)
        yield {**features, "labels": [ids[str(record["label"])] for _, record in batch]}
