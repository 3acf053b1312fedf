"""Models that compute vectors of texts and of images in one space, such as CLIP and SigLIP. Does not use torch."""

from __future__ import annotations

from pathlib import Path

from jobs.access.model_files import invalid, read_json
from jobs.errors import InvalidSpec
from jobs.specs.parameters.task_parameters import refused
from jobs.specs.parameters.text_tasks import EmbeddingsParameters

JOINT_TYPES = frozenset(
    {
        "aimv2", "align", "altclip", "blip", "chinese_clip", "clip", "clipseg", "flava", "groupvit", "metaclip_2",
        "owlv2", "owlvit", "siglip", "siglip2", "tipsv2", "vision-text-dual-encoder",
    }
)  # fmt: skip
"""The `model_type` of models whose class in transformers has `get_text_features` and `get_image_features`."""
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that describe how images are prepared; a model that takes images has at least one of them."""
_TEXT_MODEL_PARAMETERS = ("pooling", "max_length", "prompt", "prompt_name")
"""Parameters of `embeddings` that a joint model does not take: it pools in its own way, and its texts are short."""


def is_joint(folder: Path, *, name: str) -> bool:
    """Whether a folder has a joint model, and no `modules.json` that says how to compute vectors of texts.

    Args:
        folder: The model's folder.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidModel: Its config.json is missing or damaged.
    """
    if (folder / "modules.json").is_file():
        return False
    config = read_json(folder / "config.json", name=name)
    return config.get("model_type") in JOINT_TYPES and "auto_map" not in config


def check_joint(folder: Path, parameters: EmbeddingsParameters, *, name: str, has_images: bool) -> None:
    """Check that a model takes the inputs and the parameters of an `embeddings` job.

    Args:
        folder: The model's folder, which has passed `check_folder`.
        parameters: The parameters of the job.
        name: The model name that the user gave, for the message.
        has_images: Whether rows may have images.

    Raises:
        InvalidSpec: The rows may have images, but the model takes only texts; or it does not take a parameter.
        InvalidModel: The folder does not say how images are prepared.
    """
    if not is_joint(folder, name=name):
        if has_images:
            raise image_with_texts_only()
        return
    check_joint_parameters(parameters)
    if has_images and not has_image_processor(folder):
        raise invalid(name, f"has no {_PROCESSOR_FILES[0]}, which images need")


def has_image_processor(folder: Path) -> bool:
    """Whether a folder has a file that says how images are prepared."""
    return any((folder / file).exists() for file in _PROCESSOR_FILES)


def check_joint_parameters(parameters: EmbeddingsParameters) -> None:
    """Reject the parameters that only models of texts have.

    Raises:
        InvalidSpec: Such a parameter is set.
    """
    for name in _TEXT_MODEL_PARAMETERS:
        if getattr(parameters, name) is not None:
            raise refused(name, "cannot be used with a model of texts and images")


def image_with_texts_only() -> InvalidSpec:
    """Make the error for a job with images whose model takes only texts."""
    param = "input.columns.image"
    return InvalidSpec(
        f"{param}: the model takes only texts; images need a model of texts and images, such as CLIP or SigLIP",
        param=param,
    )
