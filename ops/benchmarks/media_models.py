"""Models of images and sounds in the sizes of well-known ones, with random weights, and rows for them."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from device_busy import images
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SAMPLING_RATE = 16_000
_WHISPER_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One modality: its task, a model, rows and parameters."""

    name: str
    task: str
    column: str
    make_model: Callable[[Path], None]
    make_rows: Callable[[Path], Sequence[str]]
    rows: int
    """Default number of rows."""
    aim: float
    """Least speed of the daemon relative to the pipeline."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The job's parameters."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """The same, as arguments of the pipeline's call."""


def sounds(folder: Path, *, most_seconds: float) -> list[str]:
    """Sounds of one channel at 16 kHz, from one second to `most_seconds` long."""
    paths = []
    generator = np.random.default_rng(0)
    for number in range(40):
        num_samples = int(generator.uniform(1, most_seconds) * SAMPLING_RATE)
        paths.append(str(folder / f"{number}.wav"))
        with wave.open(paths[-1], "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLING_RATE)
            file.writeframes(generator.integers(-3000, 3000, num_samples, dtype=np.int16).tobytes())
    return paths


def _save(folder: Path, model: Any, *parts: Any) -> None:
    for part in (model, *parts):
        part.save_pretrained(folder)


def vit_base(folder: Path) -> None:
    """A ViT in the size of google/vit-base-patch16-224."""
    torch.manual_seed(0)
    _save(folder, tf.ViTForImageClassification(tf.ViTConfig(num_labels=1000)), tf.ViTImageProcessorPil())


def wav2vec2_base(folder: Path) -> None:
    """A wav2vec 2.0 in the size of facebook/wav2vec2-base-960h: group norm and no attention mask."""
    torch.manual_seed(0)
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    tokenizer = tf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = tf.Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE, return_attention_mask=False)
    model = tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(vocab_size=len(symbols), pad_token_id=0))
    _save(folder, model, tf.Wav2Vec2Processor(extractor, tokenizer))


def whisper_tiny(folder: Path) -> None:
    """A Whisper in the size of openai/whisper-tiny.en. Its tokenizer knows bytes and special tokens only."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens(list(_WHISPER_TOKENS))
    base.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    end = "<|endoftext|>"
    tokenizer = tf.WhisperTokenizerFast(
        tokenizer_object=base, unk_token=end, bos_token=end, eos_token=end, pad_token=end, model_max_length=448
    )
    ids = {
        "pad_token_id": base.token_to_id(end), "bos_token_id": base.token_to_id(end),
        "eos_token_id": base.token_to_id(end), "decoder_start_token_id": base.token_to_id("<|startoftranscript|>"),
        "suppress_tokens": [], "begin_suppress_tokens": [],
    }  # fmt: skip
    config = tf.WhisperConfig(
        **ids, vocab_size=51_864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
    )  # fmt: skip
    model = tf.WhisperForConditionalGeneration(config)
    model.generation_config = tf.GenerationConfig(
        **ids, max_length=448, is_multilingual=False, return_timestamps=False, max_initial_timestamp_index=50,
        no_timestamps_token_id=base.token_to_id("<|notimestamps|>"),
        prev_sot_token_id=base.token_to_id("<|startofprev|>"),
    )  # fmt: skip
    _save(folder, model, tokenizer, tf.WhisperFeatureExtractor())


_SPEECH = "automatic-speech-recognition"
_GREEDY = {"num_beams": 1, "max_new_tokens": 40}
KINDS = (
    Kind("images", "image-classification", "image", vit_base, images, 96, 1.3),
    Kind("ctc", _SPEECH, "audio", wav2vec2_base, lambda folder: sounds(folder, most_seconds=10), 48, 1.5),
    Kind(
        "whisper", _SPEECH, "audio", whisper_tiny, lambda folder: sounds(folder, most_seconds=28), 48, 1.5,
        parameters=_GREEDY, call={"generate_kwargs": _GREEDY},
    ),
)  # fmt: skip
