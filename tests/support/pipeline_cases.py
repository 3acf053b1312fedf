"""For every task that runs through its pipeline: tiny models, rows, parameters, and the call of its pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support import tiny_media
from tests.support.pipeline_rows import (
    BEGUN_CHATS,
    CAPTIONS,
    CHATS,
    DECISIONS,
    DOCUMENTS,
    IMAGE_ROWS,
    LABELLED_IMAGES,
    LABELLED_SOUNDS,
    LABELS,
    LONG_ROWS,
    PAIRS,
    SOUND_ROWS,
    SPOKEN_ROWS,
    SPOKEN_TEXTS,
    TABLES,
    TEXT_ROWS,
    Values,
)
from tests.support.task_kit import LONG_TEXT
from tests.support.tiny import CHAT_TEMPLATE, tiny_causal_lm, tiny_ctc, tiny_encoder, tiny_image_classifier
from tests.support.tiny_vision import tiny_llava


def _first(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(next(iter(values.values())), **parameters)


def _with_labels(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    labels = values.get("candidate_labels", parameters.get("candidate_labels"))
    return reference(next(iter(values.values())), **{**parameters, "candidate_labels": labels})


def _as_mapping(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(dict(values), **parameters)


def _pair(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference([values["image"], values["image_pair"]], **parameters)


def _image_and_text(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(images=values["image"], text=values["text"], **parameters)


def _chat(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    messages = [
        {
            **message,
            "content": [
                {**part, "image": values["image"]} if part["type"] == "image" else part for part in message["content"]
            ],
        }
        for message in values["text"]
    ]
    return reference(text=messages, **parameters)


def _seeded(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    return _first(reference, values, parameters)


def multilingual_whisper(folder: Path) -> Path:
    """A Whisper model for two languages."""
    return tiny_media.tiny_whisper(folder, languages=True)


def _chooser(folder: Path) -> Path:
    return tiny_causal_lm(folder, max_tokens=1024, chat_template=CHAT_TEMPLATE)


@dataclass(frozen=True)
class Case:
    """One model of a task with some parameters."""

    task: str
    build: Callable[[Path], Path]
    rows: Sequence[Values]
    parameters: Mapping[str, Any]
    call: Callable[[Any, Values, Mapping[str, Any]], Any] = _first
    """Calls the pipeline for one row."""
    is_joined: bool = True
    """Whether rows share forward passes."""
    tolerance: float = 1e-5

    def __str__(self) -> str:
        return "-".join([self.task, self.build.__name__, *self.parameters])


CASES = [
    Case("image-classification", tiny_image_classifier, IMAGE_ROWS, {}),
    Case("image-classification", tiny_image_classifier, IMAGE_ROWS, {"top_k": 2, "function_to_apply": "sigmoid"}),
    Case("image-feature-extraction", tiny_media.tiny_vision_encoder, IMAGE_ROWS, {}),
    Case(
        "image-feature-extraction",
        tiny_media.tiny_vision_encoder,
        IMAGE_ROWS,
        {"pool": True, "image_processor_kwargs": {"do_normalize": False}},
    ),
    Case("object-detection", tiny_media.tiny_detector, IMAGE_ROWS, {"threshold": 0.0}),
    Case("image-segmentation", tiny_media.tiny_segmenter, IMAGE_ROWS, {}),
    Case("image-segmentation", tiny_media.tiny_mask_former, IMAGE_ROWS, {"threshold": 0.0}),
    Case("image-segmentation", tiny_media.tiny_mask_former, IMAGE_ROWS, {"subtask": "semantic"}),
    Case(
        "image-segmentation",
        tiny_media.tiny_mask_former,
        IMAGE_ROWS,
        {"subtask": "panoptic", "threshold": 0.0, "mask_threshold": 0.2, "overlap_mask_area_threshold": 0.1},
    ),
    Case("image-segmentation", tiny_media.tiny_mask_former, IMAGE_ROWS, {"subtask": "instance", "threshold": 0.0}),
    Case("depth-estimation", tiny_media.tiny_depth, IMAGE_ROWS, {}, tolerance=1e-2),
    Case("zero-shot-image-classification", tiny_media.tiny_clip, LABELLED_IMAGES, LABELS, _with_labels),
    Case(
        "zero-shot-image-classification",
        tiny_media.tiny_clip,
        LABELLED_IMAGES,
        {**LABELS, "hypothesis_template": "It is {}."},
        _with_labels,
    ),
    Case(
        "zero-shot-object-detection", tiny_media.tiny_owl, LABELLED_IMAGES, {**LABELS, "threshold": 0.0}, _with_labels
    ),
    Case(
        "zero-shot-object-detection",
        tiny_media.tiny_owl,
        LABELLED_IMAGES,
        {**LABELS, "threshold": 0.0, "top_k": 3},
        _with_labels,
    ),
    Case("keypoint-matching", tiny_media.tiny_matcher, PAIRS, {}, _pair),
    Case("keypoint-matching", tiny_media.tiny_matcher, PAIRS, {"threshold": 0.2}, _pair),
    Case("image-text-to-text", tiny_llava, CAPTIONS, {"max_new_tokens": 6}, _image_and_text),
    Case(
        "image-text-to-text",
        tiny_llava,
        CAPTIONS,
        {"generate_kwargs": {"num_beams": 2}, "return_full_text": False},
        _image_and_text,
    ),
    Case("image-text-to-text", tiny_llava, CHATS, {"max_new_tokens": 4}, _chat),
    Case(
        "image-text-to-text",
        tiny_llava,
        CAPTIONS,
        {"stop_sequence": "e", "skip_special_tokens": False, "processor_kwargs": {"do_normalize": False}},
        _image_and_text,
    ),
    Case(
        "image-text-to-text",
        tiny_llava,
        BEGUN_CHATS,
        {"max_new_tokens": 4, "continue_final_message": True},
        _chat,
    ),
    Case("document-question-answering", tiny_media.tiny_reader_of_documents, DOCUMENTS, {"top_k": 2}, _as_mapping),
    Case(
        "document-question-answering",
        tiny_media.tiny_reader_of_documents,
        DOCUMENTS,
        {
            "max_seq_len": 16,
            "doc_stride": 4,
            "padding": "max_length",
            "max_answer_len": 3,
            "handle_impossible_answer": True,
        },
        _as_mapping,
    ),
    Case("table-question-answering", tiny_media.tiny_reader_of_tables, TABLES, {}, _as_mapping),
    Case(
        "table-question-answering",
        tiny_media.tiny_reader_of_tables,
        [*TABLES, {"table": {"name": ["ada"] * 80, "age": ["1"] * 80}, "query": "how old"}],
        {"padding": "max_length", "truncation": "drop_rows_to_fit"},
        _as_mapping,
    ),
    Case(
        "table-question-answering",
        tiny_media.tiny_reader_of_tables,
        TABLES,
        {"sequential": True},
        _as_mapping,
        is_joined=False,
    ),
    Case("audio-classification", tiny_media.tiny_sound_classifier, SOUND_ROWS, {"top_k": 2}),
    Case("audio-classification", tiny_media.tiny_sound_classifier, SOUND_ROWS, {"function_to_apply": "none"}),
    Case("zero-shot-audio-classification", tiny_media.tiny_clap, LABELLED_SOUNDS, LABELS, _with_labels),
    Case(
        "zero-shot-audio-classification",
        tiny_media.tiny_clap,
        LABELLED_SOUNDS,
        {**LABELS, "hypothesis_template": "It is {}."},
        _with_labels,
    ),
    Case("automatic-speech-recognition", tiny_ctc, SOUND_ROWS, {}),
    Case("automatic-speech-recognition", tiny_ctc, SOUND_ROWS, {"return_timestamps": "char"}),
    Case("automatic-speech-recognition", tiny_ctc, SOUND_ROWS, {"chunk_length_s": 0.2, "return_timestamps": "word"}),
    Case("automatic-speech-recognition", tiny_media.tiny_whisper, SPOKEN_ROWS, {}),
    Case(
        "automatic-speech-recognition", tiny_media.tiny_whisper, LONG_ROWS, {"num_beams": 1, "return_timestamps": True}
    ),
    Case(
        "automatic-speech-recognition",
        tiny_media.tiny_whisper,
        LONG_ROWS,
        {"generate_kwargs": {"num_beams": 1}, "chunk_length_s": 3},
    ),
    Case(
        "automatic-speech-recognition",
        tiny_media.tiny_whisper,
        SPOKEN_ROWS,
        {"num_beams": 1, "return_timestamps": "word"},
        is_joined=False,
    ),
    Case(
        "automatic-speech-recognition",
        multilingual_whisper,
        SPOKEN_ROWS,
        {"num_beams": 1, "language": "de", "task": "translate"},
    ),
    Case(
        "automatic-speech-recognition",
        multilingual_whisper,
        SPOKEN_ROWS,
        {"num_beams": 1, "chunk_length_s": 3, "return_language": True, "return_timestamps": True},
    ),
    Case("feature-extraction", tiny_encoder, TEXT_ROWS, {}),
    Case("feature-extraction", tiny_encoder, [*TEXT_ROWS, {"text": LONG_TEXT}], {"truncation": True}),
    Case("feature-extraction", tiny_encoder, TEXT_ROWS, {"tokenize_kwargs": {"add_special_tokens": False}}),
    Case(
        "feature-extraction",
        tiny_encoder,
        TEXT_ROWS,
        {"tokenize_kwargs": {"padding": "max_length", "max_length": 40}},
    ),
    Case(
        "zero-shot-classification",
        tiny_media.tiny_entailer,
        [*TEXT_ROWS, {"text": "x", "candidate_labels": "p, q"}],
        LABELS,
        _with_labels,
    ),
    Case(
        "zero-shot-classification",
        tiny_media.tiny_entailer,
        TEXT_ROWS,
        {**LABELS, "multi_label": True, "hypothesis_template": "It is {}."},
        _with_labels,
    ),
    Case("text-to-audio", tiny_media.tiny_voice, SPOKEN_TEXTS, {}, _seeded, is_joined=False),
    Case(
        "text-to-audio",
        tiny_media.tiny_voice,
        SPOKEN_TEXTS,
        {"forward_params": {"return_dict": False}},
        _seeded,
        is_joined=False,
    ),
    Case("decision", _chooser, DECISIONS, {}, _as_mapping, is_joined=False),
]
NOT_HERE = {
    "mask-generation": "needs torchvision, which is not in the tested set; test_task_parameters has its parameters",
    "video-classification": "reads films from files: see test_task_media",
    "any-to-any": "its models with images need torchvision, and those without are of gigabytes",
}
"""Tasks that no case runs, and why."""
NOT_COMPARED = {
    ("automatic-speech-recognition", "return_info"): "is not the pipeline's; test_speech_info has it",
    ("automatic-speech-recognition", "return_segments"): "is not the pipeline's; test_real_speech has it",
    ("automatic-speech-recognition", "vad"): "is not the pipeline's; test_speech_pauses has it",
    ("document-question-answering", "lang"): "is for Tesseract, which reads images without `word_boxes`",
    ("text-to-audio", "generate_kwargs"): "is for models that generate audio codes, which are of gigabytes",
}
"""Task and parameter that no case sets, and why."""
