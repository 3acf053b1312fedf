"""Load image processors that compute with Pillow and numpy."""

from __future__ import annotations

from typing import Any

import transformers

from worker.device import is_out_of_memory
from worker.models.load import ModelFolder, load_error


def pillow_processor(source: ModelFolder) -> Any | None:
    """The model's image processor that computes with Pillow and numpy, or None if it has no such processor.

    Otherwise transformers would pick the backend by whether torchvision is installed, and the pixels differ by 1/255.

    Raises:
        InvalidModel: The file that describes the processor cannot be used.
    """
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            source.path, backend="pil", trust_remote_code=source.trust_remote_code
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, ValueError) and str(error).startswith("Unrecognized image processor"):
            return None  # a model that has a feature extractor instead, such as one of sounds
        raise load_error(source.name, error, what="its preprocessor_config.json cannot be used") from error
