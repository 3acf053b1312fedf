"""Tiny real models for the tasks with images, audio, video, tables and documents, made by the tests."""

from __future__ import annotations

import importlib
import string
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers as tf
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tests.support.tiny import (
    ABC,
    SIZES,
    WAVE_CONVOLUTIONS,
    WIDE,
    byte_level_tokenizer,
    save,
    tiny_classifier,
    wordpiece_tokenizer,
    write_vocabulary,
)

_IMAGES: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}
"""Sizes of the vision encoder of a model of images and texts."""
_CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
"""Sizes of an image processor that resizes an image by its shortest edge and crops it."""


def _texts(num_positions: int) -> dict[str, Any]:
    """Sizes of the text encoder of a model of images and texts, for the byte-level tokenizer."""
    tokens = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {**SIZES, **tokens, "max_position_embeddings": num_positions}


def _size(height: int, width: int) -> dict[str, Any]:
    return {"size": {"height": height, "width": width}}


def tiny_detector(folder: Path) -> Path:
    """A YOLOS model for object detection, which resizes an image by its shortest edge."""
    processor = tf.YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    config = {**WIDE, **ABC, "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 5}
    return save(folder, tf.YolosForObjectDetection, processor, **config)


def tiny_segmenter(folder: Path) -> Path:
    """A Segformer model for semantic segmentation."""
    config = {
        **ABC, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16, "initializer_range": 0.3,
    }  # fmt: skip
    return save(folder, tf.SegformerForSemanticSegmentation, tf.SegformerImageProcessor(**_size(64, 64)), **config)


def tiny_mask_former(folder: Path) -> Path:
    """A MaskFormer model, whose class is in none of the task's Auto classes."""
    backbone = tf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = tf.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6, use_timm_backbone=False,
        backbone_config=tf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
        ),
    )  # fmt: skip
    config = {
        **ABC, "fpn_feature_size": 32, "mask_feature_size": 32, "backbone_config": backbone, "decoder_config": decoder,
        "init_std": 0.3, "init_xavier_std": 1.0,
    }  # fmt: skip
    return save(folder, tf.MaskFormerForInstanceSegmentation, tf.MaskFormerImageProcessor(**_size(64, 64)), **config)


def tiny_depth(folder: Path) -> Path:
    """A DPT model for depth estimation."""
    config = {
        **WIDE, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8, "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "is_hybrid": False,
    }  # fmt: skip
    return save(folder, tf.DPTForDepthEstimation, tf.DPTImageProcessor(**_size(32, 32)), **config)


def tiny_vision_encoder(folder: Path) -> Path:
    """A ViT model without a head, but with a pooler."""
    return save(folder, tf.ViTModel, tf.ViTImageProcessorPil(**_size(32, 32)), **_IMAGES, initializer_range=0.3)


def tiny_clip(folder: Path) -> Path:
    """A CLIP model of images and texts."""
    config = {"text_config": _texts(64), "vision_config": _IMAGES, "projection_dim": 16}
    return save(folder, tf.CLIPModel, byte_level_tokenizer(64), tf.CLIPImageProcessor(**_CROP), **config)


def tiny_siglip(folder: Path) -> Path:
    """A SigLIP model of images and texts; its tokenizer returns no mask."""
    tokenizer = byte_level_tokenizer(16)
    tokenizer.model_input_names = ["input_ids"]
    processor = tf.SiglipProcessor(tf.SiglipImageProcessorPil(**_size(32, 32)), tokenizer)
    config = {"text_config": {**_texts(16), "projection_size": 32}, "vision_config": _IMAGES}
    return save(folder, tf.SiglipModel, processor, **config)


def tiny_siglip2(folder: Path) -> Path:
    """A SigLIP 2 model with images of any aspect ratio; its tokenizer pads on the left and returns a mask."""
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\N{LOWER ONE EIGHTH BLOCK}", *string.ascii_lowercase]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = tf.Siglip2Tokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    processor = tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    vision = {**SIZES, "patch_size": 8, "num_patches": 16}
    config = {"text_config": {**_texts(16), "projection_size": 32}, "vision_config": vision}
    return save(folder, tf.Siglip2Model, tokenizer, processor, **config)


def tiny_owl(folder: Path) -> Path:
    """An OwlViT model for zero-shot object detection."""
    processor = tf.OwlViTImageProcessor(**_size(32, 32), do_center_crop=False)
    config = {"text_config": _texts(16), "vision_config": _IMAGES, "projection_dim": 32}
    return save(folder, tf.OwlViTForObjectDetection, byte_level_tokenizer(16), processor, **config)


def tiny_film_classifier(folder: Path) -> Path:
    """A VideoMAE model of four frames."""
    config = {**WIDE, **ABC, "image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    return save(folder, tf.VideoMAEForVideoClassification, tf.VideoMAEImageProcessor(**_CROP), **config)


def tiny_sound_classifier(folder: Path) -> Path:
    """A wav2vec 2.0 base model: group norm over time and no mask, so that padding changes its outputs."""
    extractor = tf.Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, return_attention_mask=False)
    return save(folder, tf.Wav2Vec2ForSequenceClassification, extractor, **WIDE, **WAVE_CONVOLUTIONS, **ABC)


def tiny_clap(folder: Path) -> Path:
    """A CLAP model of audio and texts."""
    text = {**SIZES, "vocab_size": 400, "max_position_embeddings": 70, "pad_token_id": 0, "projection_dim": 16}
    audio = {
        "spec_size": 64, "patch_size": 4, "num_mel_bins": 16, "window_size": 8, "patch_embeds_hidden_size": 16,
        "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2], "patch_stride": [4, 4],
        "num_hidden_layers": 2, "projection_dim": 16,
    }  # fmt: skip
    extractor = tf.ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation="rand_trunc", sampling_rate=16_000, hop_length=160,
        fft_window_size=512, frequency_max=8000,
    )  # fmt: skip
    config = {"text_config": text, "audio_config": audio, "projection_dim": 16}
    return save(folder, tf.ClapModel, byte_level_tokenizer(64), extractor, **config)


ALL_LANGUAGES = tuple(LANGUAGES)
"""The codes of the languages of OpenAI's multilingual models, in the order of their tokens."""


def tiny_whisper(folder: Path, *, languages: bool | Sequence[str] = False) -> Path:
    """A Whisper model for three seconds of audio, with its special tokens.

    Args:
        folder: The model's folder.
        languages: Codes of its languages; True for English and German, False for a model of only English.
    """
    end = "<|endoftext|>"
    codes = languages if isinstance(languages, Sequence) else ("en", "de")
    special = [
        "<|startoftranscript|>", *(f"<|{code}|>" for code in codes), "<|translate|>", "<|transcribe|>",
        "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    tokenizer = byte_level_tokenizer(448)
    tokenizer.add_special_tokens({"eos_token": end, "bos_token": end, "additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(151)])
    wrapped = tf.WhisperTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, unk_token=end, bos_token=end, eos_token=end, pad_token="<pad>",
        model_max_length=448, additional_special_tokens=special,
    )  # fmt: skip
    id_of = {name: tokenizer.convert_tokens_to_ids(name) for name in (end, *special)}
    ids = {
        "pad_token_id": 0, "bos_token_id": id_of[end], "eos_token_id": id_of[end],
        "decoder_start_token_id": id_of["<|startoftranscript|>"], "suppress_tokens": [], "begin_suppress_tokens": [],
    }  # fmt: skip
    generation = {
        **ids, "no_timestamps_token_id": id_of["<|notimestamps|>"], "max_length": 24,
        "is_multilingual": bool(languages), "prev_sot_token_id": id_of["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "alignment_heads": [[1, 0], [1, 1]], "return_timestamps": False,
    }  # fmt: skip
    if languages:
        generation["lang_to_id"] = {name: id_of[name] for name in (f"<|{code}|>" for code in codes)}
        generation["task_to_id"] = {name: id_of[f"<|{name}|>"] for name in ("transcribe", "translate")}
    config = {
        **ids, "vocab_size": len(tokenizer), "num_mel_bins": 80, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_source_positions": 150, "max_target_positions": 448, "init_std": 0.3,
    }  # fmt: skip
    extractor = tf.WhisperFeatureExtractor(feature_size=80, chunk_length=3)
    return save(folder, tf.WhisperForConditionalGeneration, wrapped, extractor, generation=generation, **config)


def tiny_voice(folder: Path) -> Path:
    """A VITS text-to-speech model with letters as tokens."""
    symbols = ["<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz '"]
    tokenizer = tf.VitsTokenizer(
        write_vocabulary(folder, symbols), phonemize=False, pad_token="<pad>", unk_token="<unk>"
    )
    config = {
        "vocab_size": len(symbols), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
        "flow_size": 16, "spectrogram_bins": 16, "posterior_encoder_num_wavenet_layers": 1,
        "prior_encoder_num_flows": 1, "prior_encoder_num_wavenet_layers": 1, "upsample_initial_channel": 16,
        "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]], "duration_predictor_num_flows": 1, "duration_predictor_filter_channels": 16,
        "depth_separable_num_layers": 1,
    }  # fmt: skip
    return save(folder, tf.VitsModel, tokenizer, **config)


def tiny_reader_of_documents(folder: Path) -> Path:
    """A LayoutLM model that answers questions about words with boxes."""
    tokenizer = wordpiece_tokenizer(64)
    config = {**WIDE, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    return save(folder, tf.LayoutLMForQuestionAnswering, tokenizer, **config)


def tiny_reader_of_tables(folder: Path) -> Path:
    """A Tapas model that selects table cells and an aggregation."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = wordpiece_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join([*tokens, "[EMPTY]"]), encoding="utf-8")
    tokenizer = tf.TapasTokenizer(str(folder / "vocab.txt"), model_max_length=128)
    config = {
        **WIDE, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "num_aggregation_labels": 2,
        "aggregation_labels": {0: "NONE", 1: "SUM"}, "no_aggregation_label_index": 0,
    }  # fmt: skip
    return save(folder, tf.TapasForQuestionAnswering, tokenizer, **config)


def tiny_matcher(folder: Path) -> Path:
    """A SuperGlue model that matches the keypoints of two images."""
    points = tf.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8, keypoint_decoder_dim=65, descriptor_decoder_dim=16,
        keypoint_threshold=0.0, max_keypoints=12, border_removal_distance=2,
    )  # fmt: skip
    config = {
        "keypoint_detector_config": points, "hidden_size": 16, "keypoint_encoder_sizes": [8, 16],
        "gnn_layers_types": ["self", "cross"], "sinkhorn_iterations": 5, "num_attention_heads": 2,
        "matching_threshold": 0.0,
    }  # fmt: skip
    return save(folder, tf.SuperGlueForKeypointMatching, tf.SuperGlueImageProcessor(**_size(48, 64)), **config)


def tiny_entailer(folder: Path) -> Path:
    """A BERT classifier of whether a text entails another."""
    return tiny_classifier(folder, labels=("contradiction", "neutral", "entailment"))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """A WAV file with 16-bit samples; two-dimensional samples are (channels, time)."""
    channels = np.atleast_2d(samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((channels.T * 2**15).round().astype("<i2").tobytes())
    return path


def write_film(path: Path, seed: int) -> Path:
    """A video of ten frames of noise."""
    av = importlib.import_module("av")
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
