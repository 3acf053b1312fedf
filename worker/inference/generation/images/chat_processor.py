"""Load the processor of a vision-language model: its tokenizer, and its image processor that computes with Pillow.

Many processors also have a video processor, which cannot be loaded without torchvision. Stoker reads no videos in
chats, so such a processor is made without it, on every host in the same way.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from jobs.access.model_files import read_json
from worker.device import is_out_of_memory
from worker.models.image_processor import pillow_processor
from worker.models.load import ModelFolder, load_error

_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files whose `processor_class` names the class of the processor."""
_VIDEO = "video_processor"


def load_chat_processor(source: ModelFolder) -> Any:
    """Load the processor that makes a model's inputs from a rendered chat and its images.

    Raises:
        InvalidModel: The processor cannot be loaded.
    """
    try:
        made = _processor_class(source)
        if made is None or _VIDEO not in made.get_attributes():
            processor = AutoProcessor.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
        else:
            processor = _without_video(source, made)
        images = pillow_processor(source)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise load_error(source.name, error, what="its processor cannot be loaded") from error
    if not hasattr(processor, "image_processor"):
        raise source.invalid("its processor takes no images")
    if images is not None:
        processor.image_processor = images
    return processor


def _processor_class(source: ModelFolder) -> Any | None:
    """The class of a processor that transformers has, or None if the files name none of them."""
    files = [read_json(source.path / file, name=source.name, required=False) for file in _NAMING_FILES]
    names = [file.get("processor_class") for file in files]
    model_type = read_json(source.path / "config.json", name=source.name).get("model_type")
    names.append(PROCESSOR_MAPPING_NAMES.get(model_type))
    name = next((name for name in names if isinstance(name, str)), None)
    return None if name is None else getattr(transformers, name, None)


def _without_video(source: ModelFolder, processor_class: Any) -> Any:
    class WithoutVideo(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            is_missing = argument_name == _VIDEO and argument is None
            return None if is_missing else super().check_argument_for_proper_class(argument_name, argument)

    settings, _ = processor_class.get_processor_dict(source.path)
    found = {
        "tokenizer": AutoTokenizer.from_pretrained(source.path, trust_remote_code=source.trust_remote_code),
        "image_processor": pillow_processor(source),
    }
    parts = [found.get(name) for name in processor_class.get_attributes()]
    return WithoutVideo.from_args_and_dict(parts, settings)
