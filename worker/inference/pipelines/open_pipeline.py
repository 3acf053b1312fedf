"""Load a model for a task of `transformers.pipeline`, open its pipeline, and copy it for the threads that encode."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from jobs.access.joint_models import has_image_processor
from jobs.access.model_files import read_json
from worker.device import is_out_of_memory
from worker.models import transformers_internals as internals
from worker.models.image_processor import pillow_processor
from worker.models.load import ModelFolder, load_error
from worker.models.media.fast_images import FastImages, OncePerImage, find_fast_images

logger = logging.getLogger(__name__)

_PARTS = ("tokenizer", "image_processor", "video_processor", "feature_extractor", "processor")
VIDEOS = "video-classification"
_ONE_IMAGE = frozenset(
    {
        "depth-estimation", "document-question-answering", "image-classification", "image-feature-extraction",
        "image-segmentation", "object-detection", "zero-shot-image-classification", "zero-shot-object-detection",
    }
)  # fmt: skip
"""Tasks whose pipelines call the image processor with one image."""
_ONCE_PER_LABEL = frozenset({"zero-shot-object-detection"})
"""Tasks whose pipelines call the image processor with the same image for each label."""
_ALSO_ACCEPTED = {"document-question-answering": {"VisionEncoderDecoderModel"}}
"""Model classes that a pipeline accepts but does not list in a mapping."""


def model_class(source: ModelFolder, task: str, config: PretrainedConfig) -> Any:
    """The class with which a model is loaded for a task: an Auto class of the task, or else the class that the model's
    config.json names, if transformers has it and the pipeline accepts it.

    Raises:
        InvalidModel: No class fits.
    """
    if task == "decision" and read_json(source.path / "decision.json", name=source.name, required=False).get("adapter"):
        raise source.invalid("its decision.json names an adapter; merge it into the model and save the result")
    for auto_class in internals.SUPPORTED_TASKS[task]["pt"]:
        # A config such as Qwen2's also belongs to plain language models, which give the logits of labels instead.
        if auto_class.__name__ == "AutoModelForDecision" and not _decides(config):
            continue
        is_mapped = type(config) in internals.config_classes(auto_class)
        if is_mapped or auto_class.__name__ in getattr(config, "auto_map", {}):
            return auto_class
    accepted = internals.listed_model_classes(task) | _ALSO_ACCEPTED.get(task, set())
    for architecture in config.architectures or ():
        if architecture in accepted and hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    named = f" ({config.architectures[0]})" if config.architectures else ""
    raise source.invalid(f"it is a {config.model_type} model{named}, which transformers does not support for {task}")


def _decides(config: PretrainedConfig) -> bool:
    return any(architecture.endswith("ForDecision") for architecture in config.architectures or ())


def open_pipeline(source: ModelFolder, task: str, model: Any, device: torch.device) -> Any:
    """The pipeline of a loaded model.

    Raises:
        InvalidModel: A part of the model (such as its processor) is missing or does not fit.
        MachineError: The installed transformers does not fit this version of Stoker.
    """
    internals.check_pipelines()
    # Each part needs a path to load it from, as the pipeline gets the model itself and not its name.
    parts: dict[str, Any] = {part: str(source.path) for part in _PARTS if internals.loads_part(task, part)}
    parts["config"] = str(source.path)
    try:
        if "image_processor" in parts:
            parts["image_processor"] = _image_processor(source) or parts["image_processor"]
        found = transformers.pipeline(
            task, model=model, device=device, dtype=None, trust_remote_code=source.trust_remote_code, **parts
        )
        if task == VIDEOS and found.image_processor is not None:
            found.video_processor = None  # it needs torchvision, and selects other frames
        processor = getattr(found.processor, "image_processor", None) or found.image_processor
        if processor is not None:
            logger.info("images are prepared by %s", type(processor).__name__)
        return found
    except Exception as error:
        # `pipeline` itself raises bare Exceptions, such as for a missing processor.
        if is_out_of_memory(error):
            raise
        raise load_error(source.name, error, what=f"cannot be used for {task}") from error


def _image_processor(source: ModelFolder) -> Any | None:
    if not has_image_processor(source.path):
        return None  # the pipeline says so
    return pillow_processor(source)


def fast_images_of(pipeline: Any) -> FastImages | None:
    """How the images or frames of a pipeline can be prepared faster, or None; see `find_fast_images`."""
    of_videos = pipeline.task == VIDEOS and pipeline.video_processor is None
    if pipeline.task not in _ONE_IMAGE and not of_videos:
        return None
    return find_fast_images(pipeline.image_processor, pipeline.device, pipeline.model.dtype, of_videos=of_videos)


def for_encoding(pipeline: Any, fast_images: FastImages | None) -> Any:
    """A copy of a pipeline with separate tokenizers and processors, for the thread that prepares rows.

    A tokenizer keeps its padding and truncation settings as state. If two threads call it with different settings, it
    silently gives wrong results.

    Args:
        pipeline: The pipeline, which stays as it is.
        fast_images: How its images can be prepared faster.
    """
    other = copy.copy(pipeline)
    parts = {name: getattr(pipeline, name) for name in _PARTS}
    for name, part in copy.deepcopy(parts).items():  # in one call, as a processor refers to the tokenizer
        setattr(other, name, part)
    if fast_images is not None:
        other.image_processor = fast_images.processor(other.image_processor)
    if pipeline.task in _ONCE_PER_LABEL:
        other.image_processor = OncePerImage(other.image_processor)
    return other
