"""What a pipeline or its model does not take is the user's error, once and before the first row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.data.rows import Row
from jobs.errors import InvalidInput, InvalidModel, InvalidSpec
from tests.support.task_kit import LONG_TEXT, error_codes, load, outputs, text_rows
from tests.support.tiny import (
    tiny_causal_lm,
    tiny_classifier,
    tiny_ctc,
    tiny_encoder,
    tiny_image_classifier,
    tiny_masked_lm,
    tiny_tagger,
)
from tests.support.tiny_media import (
    tiny_entailer,
    tiny_mask_former,
    tiny_reader_of_documents,
    tiny_voice,
    tiny_whisper,
)
from tests.support.tiny_vision import tiny_llava
from worker.inference.pipelines.parameters import accepted_names
from worker.models import transformers_internals
from worker.models.media import open_media, sounds

SPEECH = "automatic-speech-recognition"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "build", "parameters", "param"),
    [
        ("feature-extraction", tiny_encoder, {"truncate": True}, "truncate"),
        ("text-generation", tiny_causal_lm, {"max_new_token": 5}, "max_new_token"),
        ("text-generation", tiny_causal_lm, {"custom_generate": "some/repository"}, "custom_generate"),
        (SPEECH, tiny_ctc, {"trust_remote_code": True}, "trust_remote_code"),
        (SPEECH, tiny_ctc, {"language": "de"}, "language"),
        (SPEECH, tiny_whisper, {"langauge": "de"}, "langauge"),
        (SPEECH, tiny_whisper, {"language": "de"}, "language"),
        (SPEECH, tiny_whisper, {"generate_kwargs": {"num_beam": 1}}, "generate_kwargs.num_beam"),
        (SPEECH, tiny_whisper, {"generate_kwargs": {"streamer": 1}}, "generate_kwargs.streamer"),
        (
            "feature-extraction",
            tiny_encoder,
            {"tokenize_kwargs": {"a": [{"trust_remote_code": 1}]}},
            "tokenize_kwargs.trust_remote_code",
        ),
        ("image-classification", tiny_image_classifier, {"topk": 5}, "topk"),
        ("image-segmentation", tiny_mask_former, {"treshold": 0.5}, "treshold"),
        ("image-text-to-text", tiny_llava, {"num_beams": 2}, "num_beams"),
        ("image-text-to-text", tiny_llava, {"foo": 2}, "foo"),
        ("document-question-answering", tiny_reader_of_documents, {"topk": 2}, "topk"),
        ("text-to-audio", tiny_voice, {"speed": 2}, "speed"),
        ("zero-shot-classification", tiny_classifier, {"labels": ["a"]}, "labels"),
    ],
)
def test_unknown_parameters_are_refused(
    tmp_path: Path, task: str, build: Any, parameters: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(task, build(tmp_path), parameters)
    assert caught.value.param == f"parameters.{param}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "build", "parameters"),
    [
        ("text-classification", tiny_classifier, {"max_length": 1}),
        ("token-classification", tiny_tagger, {"max_length": 1}),
        ("fill-mask", tiny_masked_lm, {"tokenizer_kwargs": {"max_length": 1, "truncation": True}}),
    ],
)
def test_no_row_is_cut_below_its_special_tokens(
    tmp_path: Path, task: str, build: Any, parameters: dict[str, Any]
) -> None:
    """Each row would be an error that blames the model."""
    with pytest.raises(InvalidSpec, match=r"^parameters\.max_length: must be at least 2"):
        load(task, build(tmp_path), parameters)


def test_values_that_generate_would_refuse_are_refused_at_once(tmp_path: Path) -> None:
    model = tiny_whisper(tmp_path, languages=True)
    for parameters, words in (
        ({"language": "klingon"}, "does not support the language 'klingon'"),
        ({"language": "fr"}, "does not support the language 'fr'"),
        ({"task": "sing"}, "must be one of transcribe, translate"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"return_timestamps": "char"}, "Whisper cannot return `char`"),
    ):
        with pytest.raises(InvalidSpec, match=words):
            load(SPEECH, model, parameters)
    sounds = [Row(0, None, {"audio": np.zeros(4000, np.float32)})]
    for parameters in ({"language": "german", "task": "translate"}, {"generate_kwargs": {"language": "<|de|>"}}):
        [output] = outputs(load(SPEECH, model, {**parameters, "num_beams": 1}), sounds)
        assert set(output) == {"text"}


def test_models_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="no trained weights for"):
        load("text-generation", tiny_encoder(tmp_path / "encoder"))
    with pytest.raises(InvalidModel, match=r"\(ViTForImageClassification\), which transformers does not support for d"):
        load("depth-estimation", tiny_image_classifier(tmp_path / "pictures"))
    with pytest.raises(InvalidModel, match="no tokenizer"):
        load("feature-extraction", tiny_image_classifier(tmp_path / "image"))


def test_a_list_is_not_answered_for_its_first_text(tmp_path: Path) -> None:
    task_model = load("zero-shot-classification", tiny_entailer(tmp_path), {"candidate_labels": ["a"]})
    assert error_codes(outputs(task_model, text_rows([["one", "two"], "one"]))) == ["wrong_type", None]


def test_rows_longer_than_the_model_takes_are_errors(tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path)
    assert error_codes(outputs(load("feature-extraction", model), text_rows([LONG_TEXT, "x"]))) == [
        "row_too_long",
        None,
    ]
    [cut] = outputs(load("feature-extraction", model, {"truncation": True}), text_rows([LONG_TEXT]))
    assert len(cut[0]) == 128


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    for module in (open_media, sounds):
        monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(InvalidSpec, match=r"'mask-generation' needs the package torchvision, .* that matches torch"):
        open_media.check_packages("mask-generation")
    with pytest.raises(InvalidSpec, match=r"pip install 'stoker\[audio\]'"):
        open_media.check_packages("video-classification")
    with pytest.raises(InvalidInput, match=r"pip install 'stoker\[audio\]'"):
        sounds.decode_sound(b"ID3 and so on", 16_000, max_seconds=10)
    assert sounds.decode_sound(b"no sound at all", 16_000, max_seconds=10).code == "invalid_audio"


def test_masks_have_parameters_of_their_own() -> None:
    """Its processor needs torchvision, but the names that the pipeline reads are known without it."""
    masks = object.__new__(transformers_internals.pipeline_class("mask-generation"))
    named, is_read = accepted_names(masks)
    assert {"points_per_batch", "pred_iou_thresh", "crops_nms_thresh"} <= set(named)
    assert not is_read("pred_iou_tresh")
