"""Tiny real models for the tasks with images, audio, video, tables and documents, made by the tests."""

from __future__ import annotations

import importlib
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import transformers as tf

from tests.support.tiny import byte_level_tokenizer, seeded, tiny_classifier, wordpiece_tokenizer

LABELS: dict[str, Any] = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_WIDE: dict[str, Any] = {**_SMALL, "initializer_range": 0.3}
_IMAGES: dict[str, Any] = {**_SMALL, "image_size": 32, "patch_size": 8}
"""Sizes of the vision encoder of a model of images and texts."""
WAVE_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (32, 32),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
"""The convolutions over raw samples of a small wav2vec 2.0 and similar models."""


def _texts(num_positions: int) -> dict[str, Any]:
    """Sizes of the text encoder of a model of images and texts, for the byte-level tokenizer."""
    tokens = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {**_SMALL, **tokens, "max_position_embeddings": num_positions}


def _save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def tiny_detector(folder: Path) -> Path:
    """A YOLOS model for object detection, which resizes an image by its shortest edge."""
    with seeded(0):
        config = tf.YolosConfig(**_WIDE, image_size=[64, 64], patch_size=16, num_detection_tokens=5, **LABELS)
        model = tf.YolosForObjectDetection(config)
    return _save(folder, model, tf.YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}))


def tiny_segmenter(folder: Path) -> Path:
    """A Segformer model for semantic segmentation."""
    with seeded(0):
        config = tf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            initializer_range=0.3,
            **LABELS,
        )
        model = tf.SegformerForSemanticSegmentation(config)
    return _save(folder, model, tf.SegformerImageProcessor(size={"height": 64, "width": 64}))


def tiny_mask_former(folder: Path) -> Path:
    """A MaskFormer model, whose class is in none of the task's Auto classes."""
    with seeded(0):
        backbone = tf.SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        decoder = tf.DetrConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=6,
            use_timm_backbone=False,
            backbone_config=tf.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
            ),
        )
        config = tf.MaskFormerConfig(
            fpn_feature_size=32,
            mask_feature_size=32,
            backbone_config=backbone,
            decoder_config=decoder,
            init_std=0.3,
            init_xavier_std=1.0,
            **LABELS,
        )
        model = tf.MaskFormerForInstanceSegmentation(config)
    return _save(folder, model, tf.MaskFormerImageProcessor(size={"height": 64, "width": 64}))


def tiny_depth(folder: Path) -> Path:
    """A DPT model for depth estimation."""
    with seeded(0):
        config = tf.DPTConfig(
            **{**_WIDE, "num_hidden_layers": 4},
            image_size=32,
            patch_size=8,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            is_hybrid=False,
        )
        model = tf.DPTForDepthEstimation(config)
    return _save(folder, model, tf.DPTImageProcessor(size={"height": 32, "width": 32}))


def tiny_clip(folder: Path) -> Path:
    """A CLIP model of images and texts."""
    tokenizer = byte_level_tokenizer(64)
    with seeded(0):
        model = tf.CLIPModel(tf.CLIPConfig(text_config=_texts(64), vision_config=_IMAGES, projection_dim=16))
    processor = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, model, tokenizer, processor)


def tiny_owl(folder: Path) -> Path:
    """An OwlViT model for zero-shot object detection."""
    tokenizer = byte_level_tokenizer(16)
    with seeded(0):
        config = tf.OwlViTConfig(text_config=_texts(16), vision_config=_IMAGES, projection_dim=32)
        model = tf.OwlViTForObjectDetection(config)
    processor = tf.OwlViTImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    return _save(folder, model, tokenizer, processor)


def tiny_film_classifier(folder: Path) -> Path:
    """A VideoMAE model of four frames."""
    with seeded(0):
        config = tf.VideoMAEConfig(**_WIDE, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, **LABELS)
        model = tf.VideoMAEForVideoClassification(config)
    processor = tf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, model, processor)


def tiny_sound_classifier(folder: Path) -> Path:
    """A wav2vec 2.0 base model: group norm over time and no mask, so that padding changes its outputs."""
    with seeded(0):
        model = tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**_WIDE, **WAVE_CONVOLUTIONS, **LABELS))
    extractor = tf.Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, return_attention_mask=False)
    return _save(folder, model, extractor)


def tiny_clap(folder: Path) -> Path:
    """A CLAP model of audio and texts."""
    tokenizer = byte_level_tokenizer(64)
    text = {**_SMALL, "vocab_size": 400, "max_position_embeddings": 70, "pad_token_id": 0, "projection_dim": 16}
    audio = {
        "spec_size": 64,
        "patch_size": 4,
        "num_mel_bins": 16,
        "window_size": 8,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_stride": [4, 4],
        "num_hidden_layers": 2,
        "projection_dim": 16,
    }
    with seeded(0):
        model = tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
    extractor = tf.ClapFeatureExtractor(
        feature_size=16,
        max_length_s=1,
        truncation="rand_trunc",
        sampling_rate=16_000,
        hop_length=160,
        fft_window_size=512,
        frequency_max=8000,
    )
    return _save(folder, model, tokenizer, extractor)


def tiny_whisper(folder: Path, *, languages: bool = False) -> Path:
    """A Whisper model for three seconds of audio, with its special tokens, for only English or for two languages."""
    tokenizer = byte_level_tokenizer(448)
    tokenizer.add_special_tokens(
        {
            "eos_token": "<|endoftext|>",
            "bos_token": "<|endoftext|>",
            "additional_special_tokens": [
                "<|startoftranscript|>",
                "<|en|>",
                "<|de|>",
                "<|translate|>",
                "<|transcribe|>",
                "<|startoflm|>",
                "<|startofprev|>",
                "<|nospeech|>",
                "<|notimestamps|>",
            ],
        }
    )
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(151)])
    ids = tokenizer.convert_tokens_to_ids
    wrapped = tf.WhisperTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        model_max_length=448,
    )
    generation = {
        "decoder_start_token_id": ids("<|startoftranscript|>"),
        "eos_token_id": ids("<|endoftext|>"),
        "pad_token_id": 0,
        "bos_token_id": ids("<|endoftext|>"),
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "max_length": 24,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
        "is_multilingual": languages,
        "prev_sot_token_id": ids("<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "alignment_heads": [[1, 0], [1, 1]],
        "return_timestamps": False,
    }
    if languages:
        generation |= {
            "lang_to_id": {"<|en|>": ids("<|en|>"), "<|de|>": ids("<|de|>")},
            "task_to_id": {"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")},
        }
    with seeded(0):
        config = tf.WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=80,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            d_model=32,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=150,
            max_target_positions=448,
            init_std=0.3,
            pad_token_id=0,
            bos_token_id=ids("<|endoftext|>"),
            eos_token_id=ids("<|endoftext|>"),
            decoder_start_token_id=ids("<|startoftranscript|>"),
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
        model = tf.WhisperForConditionalGeneration(config)
    model.generation_config = tf.GenerationConfig(**generation)
    extractor = tf.WhisperFeatureExtractor(feature_size=80, chunk_length=3)
    return _save(folder, model, wrapped, extractor)


def tiny_voice(folder: Path) -> Path:
    """A VITS text-to-speech model with letters as tokens."""
    symbols = ["<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz '"]
    vocabulary = folder / "vocab.json"
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    tokenizer = tf.VitsTokenizer(str(vocabulary), phonemize=False, pad_token="<pad>", unk_token="<unk>")
    with seeded(0):
        config = tf.VitsConfig(
            vocab_size=len(symbols),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=16,
            flow_size=16,
            spectrogram_bins=16,
            posterior_encoder_num_wavenet_layers=1,
            prior_encoder_num_flows=1,
            prior_encoder_num_wavenet_layers=1,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            duration_predictor_num_flows=1,
            duration_predictor_filter_channels=16,
            depth_separable_num_layers=1,
        )
        model = tf.VitsModel(config)
    return _save(folder, model, tokenizer)


def tiny_reader_of_documents(folder: Path) -> Path:
    """A LayoutLM model that answers questions about words with boxes."""
    with seeded(0):
        config = tf.LayoutLMConfig(**_WIDE, vocab_size=len(wordpiece_tokenizer()), max_position_embeddings=128)
        model = tf.LayoutLMForQuestionAnswering(config)
    return _save(folder, model, wordpiece_tokenizer(64))


def tiny_reader_of_tables(folder: Path) -> Path:
    """A Tapas model that selects table cells and an aggregation."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = wordpiece_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join([*tokens, "[EMPTY]"]), encoding="utf-8")
    tokenizer = tf.TapasTokenizer(str(folder / "vocab.txt"), model_max_length=128)
    with seeded(0):
        config = tf.TapasConfig(
            **_WIDE,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            num_aggregation_labels=2,
            aggregation_labels={0: "NONE", 1: "SUM"},
            no_aggregation_label_index=0,
        )
        model = tf.TapasForQuestionAnswering(config)
    return _save(folder, model, tokenizer)


def tiny_matcher(folder: Path) -> Path:
    """A SuperGlue model that matches the keypoints of two images."""
    with seeded(0):
        points = tf.SuperPointConfig(
            encoder_hidden_sizes=[8, 8, 8, 8],
            decoder_hidden_size=8,
            keypoint_decoder_dim=65,
            descriptor_decoder_dim=16,
            keypoint_threshold=0.0,
            max_keypoints=12,
            border_removal_distance=2,
        )
        config = tf.SuperGlueConfig(
            keypoint_detector_config=points,
            hidden_size=16,
            keypoint_encoder_sizes=[8, 16],
            gnn_layers_types=["self", "cross"],
            sinkhorn_iterations=5,
            num_attention_heads=2,
            matching_threshold=0.0,
        )
        model = tf.SuperGlueForKeypointMatching(config)
    return _save(folder, model, tf.SuperGlueImageProcessor(size={"height": 48, "width": 64}))


def tiny_llava(folder: Path) -> Path:
    """A Llava model, which generates text about an image."""
    tokenizer = byte_level_tokenizer(256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    text = tf.LlamaConfig(
        **{**_WIDE},
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = tf.CLIPVisionConfig(**_SMALL, image_size=32, patch_size=16, projection_dim=16)
    with seeded(0):
        config = tf.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=4,
            vision_feature_layer=-1,
        )
        model = tf.LlavaForConditionalGeneration(config)
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )
    model.generation_config.max_new_tokens = 8
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return _save(folder, model, processor)


def tiny_entailer(folder: Path) -> Path:
    """A BERT classifier of whether a text entails another."""
    names = ("contradiction", "neutral", "entailment")
    return tiny_classifier(folder, labels=names)


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
