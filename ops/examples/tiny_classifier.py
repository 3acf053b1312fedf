"""Train a tiny BERT from scratch, in seconds on a CPU, to find the package of a docstring of the standard library."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

NUM_PACKAGES = 8
MAX_TOKENS = 64
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tiny_classifier(texts: Path, folder: Path, *, num_steps: int = 300) -> tuple[Path, list[str]]:
    """Train on 80 percent of the docstrings of the largest packages and save a Hugging Face model folder.

    Args:
        texts: JSONL file with `text` and `package`.
        folder: The folder for the model and the held-out rows.
        num_steps: Number of training steps of 32 texts each.

    Returns:
        The JSONL file of held-out rows, and the packages.
    """
    transformers_logging.disable_progress_bar()
    with texts.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    sizes = collections.Counter(row["package"] for row in rows)
    packages = sorted(name for name, _ in sizes.most_common(NUM_PACKAGES))
    rows = [row for row in rows if row["package"] in packages]
    random.Random(0).shuffle(rows)
    held_out, training = rows[: len(rows) // 5], rows[len(rows) // 5 :]

    tokenizer = _train_tokenizer([row["text"] for row in training])
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=512,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(packages)),
            label2id={name: index for index, name in enumerate(packages)},
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = random.Random(1)
    model.train()
    for _ in range(num_steps):
        batch = generator.sample(training, min(32, len(training)))
        tokens = tokenizer(
            [row["text"] for row in batch], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        labels = torch.tensor([packages.index(row["package"]) for row in batch])
        model(**tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder.parent / "held-out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
    return path, packages


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
