"""Tiny real vision-language models, made by the tests. Their weights are large, so that each image changes the text."""

from __future__ import annotations

import base64
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image

from tests.support.tiny import WIDE, byte_level_tokenizer, decoder_config, save, seeded

_GENERATION = {"max_new_tokens": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
_VISION: dict[str, Any] = {**WIDE, "image_size": 32, "patch_size": 16}


def template(image: str) -> str:
    """A chat template that writes each image part as this text."""
    return (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )


def picture(seed: int, size: tuple[int, int] = (60, 60)) -> bytes:
    """A PNG file with noise, of this width and height."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def image_part(seed: int, size: tuple[int, int] = (60, 60)) -> dict[str, Any]:
    """An image of noise as a part of a message, in OpenAI's form."""
    data = base64.b64encode(picture(seed, size)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "auto"}}


def chat(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    """A chat of one message, whose parts are texts or images."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def _tokenizer(tokens: Sequence[str] = (), **named: str) -> Any:
    tokenizer = byte_level_tokenizer(512)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens, *named.values()]})
    if named:
        tokenizer._set_model_specific_special_tokens(special_tokens=named)
    return tokenizer


def _text(tokenizer: Any, **own: Any) -> dict[str, Any]:
    return {**decoder_config(tokenizer), "initializer_range": 0.3, "vocab_size": len(tokenizer), **own}


def tiny_llava(folder: Path, *, chat_template: str | None = None) -> Path:
    """A Llava model: four tokens for each image."""
    tokenizer = _tokenizer(["<image>"])
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(**_CROP),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template("<image>") if chat_template is None else chat_template,
    )
    config = {
        "vision_config": tf.CLIPVisionConfig(**_VISION, projection_dim=16),
        "text_config": tf.LlamaConfig(**_text(tokenizer)),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": 4,
        "vision_feature_layer": -1,
    }
    return save(folder, tf.LlavaForConditionalGeneration, processor, generation=_GENERATION, **config)


def tiny_qwen2_vl(folder: Path) -> Path:
    """A Qwen2-VL model, with positions in time, height and width: 4 to 16 tokens for each image."""
    return _qwen(folder, tf.Qwen2VLForConditionalGeneration, _qwen_vision(), "Qwen2VLProcessor")


def tiny_qwen2_5_vl(folder: Path) -> Path:
    """A Qwen2.5-VL model."""
    vision = _qwen_vision() | {
        "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [1],
        "window_size": 56,
    }  # fmt: skip
    return _qwen(folder, tf.Qwen2_5_VLForConditionalGeneration, vision, "Qwen2_5_VLProcessor")


def tiny_qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL model, whose vision encoder also feeds deeper layers of the decoder."""
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "patch_size": 14,
        "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0], "initializer_range": 0.3,
    }  # fmt: skip
    return _qwen(folder, tf.Qwen3VLForConditionalGeneration, vision, "Qwen3VLProcessor", head_dim=8)


def _qwen_vision() -> dict[str, Any]:
    return {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2,
            "initializer_range": 0.3}  # fmt: skip


def _qwen(folder: Path, model_class: Any, vision: Mapping[str, Any], processor: str, **text: Any) -> Path:
    """A model of Qwen's family. Its processor is written as files, since creating one would need torchvision."""
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(names)
    tokenizer.chat_template = template("<|vision_start|><|image_pad|><|vision_end|>")
    ids = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            tokenizer.convert_tokens_to_ids(list(names)),
            strict=True,
        )
    )
    pil = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    images = pil.Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    config = {"vision_config": dict(vision), "text_config": _text(tokenizer, rope_parameters=rope, **text), **ids}
    save(folder, model_class, tokenizer, images, generation=_GENERATION, **config)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor}))
    return folder


def tiny_gemma3(folder: Path) -> Path:
    """A Gemma 3 model, whose image tokens see each other in both directions; its window is eight tokens."""
    tokenizer = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=template("<start_of_image>"),
        image_seq_length=4,
    )
    ids = {f"{name}_token_index": getattr(tokenizer, f"{name}_token_id") for name in ("boi", "eoi", "image")}
    config = {
        "vision_config": {**WIDE, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        "text_config": _text(
            tokenizer,
            head_dim=8,
            query_pre_attn_scalar=1,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": False,
        **ids,
    }
    save(folder, tf.Gemma3ForConditionalGeneration, processor, generation=_GENERATION, **config)
    model = tf.Gemma3ForConditionalGeneration.from_pretrained(folder)
    with seeded(1), torch.no_grad():  # a new model has zeros here, so that it sees nothing
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def tiny_idefics3(folder: Path) -> Path:
    """An Idefics3 model, which splits a large image into tiles: four tokens for each tile."""
    tokenizer = _tokenizer([f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)] + ["<global-img>"])
    pil = importlib.import_module("transformers.models.idefics3.image_processing_pil_idefics3")
    images = pil.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = tf.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template("<image>"))
    config = {
        "vision_config": {**_VISION, "patch_size": 8},
        "text_config": {"model_type": "llama", **_text(tokenizer)},
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }
    return save(folder, tf.Idefics3ForConditionalGeneration, processor, generation=_GENERATION, **config)


def tiny_mllama(folder: Path) -> Path:
    """A Mllama model, whose decoder attends to images instead of having tokens for them."""
    tokenizer = _tokenizer(["<|image|>"])
    pil = importlib.import_module("transformers.models.mllama.image_processing_pil_mllama")
    images = pil.MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = tf.MllamaProcessor(images, tokenizer, chat_template=template("<|image|>"))
    vision = {
        **_VISION, "num_global_layers": 1, "attention_heads": 4, "max_num_tiles": 2, "vision_output_dim": 64,
        "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    config = {
        "vision_config": vision,
        "text_config": _text(tokenizer, cross_attention_layers=[1]),
        "image_token_index": tokenizer.convert_tokens_to_ids("<|image|>"),
    }
    return save(folder, tf.MllamaForConditionalGeneration, processor, generation=_GENERATION, **config)
