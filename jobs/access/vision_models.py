"""Models that generate text about images, as far as their files show. Does not use torch."""

from __future__ import annotations

from pathlib import Path

from jobs.access.joint_models import has_image_processor
from jobs.access.model_files import read_json


def takes_images(folder: Path, *, name: str) -> bool:
    """Whether a folder has a model with a vision encoder, and the files that say how images are prepared.

    Args:
        folder: The model's folder.
        name: The model name that the user gave, for the message.

    Raises:
        InvalidModel: Its config.json is missing or damaged.
    """
    config = read_json(folder / "config.json", name=name)
    return isinstance(config.get("vision_config"), dict) and has_image_processor(folder)
