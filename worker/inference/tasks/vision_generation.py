"""Text generation with vision-language models: chats whose messages have images, among others without."""

from __future__ import annotations

import copy
import importlib
import logging
from typing import Any, Self

import numpy as np
import torch

from jobs.access.vision_models import takes_images
from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row
from jobs.errors import InvalidModel
from jobs.specs.parameters.generation import TextGenerationParameters
from worker.inference.generation.decoding import DecodingLoop
from worker.inference.generation.generation_engine import GenerationEngine
from worker.inference.generation.images.chat_processor import load_chat_processor
from worker.inference.generation.images.image_prompts import ImagePrompts
from worker.inference.tasks.text_generation import TextGeneration
from worker.models.load import ModelFolder

logger = logging.getLogger(__name__)

_KNOWN = frozenset({"gemma3", "idefics3", "llava", "qwen2_5_vl", "qwen2_vl"})
"""Model types whose rows the decoding loop computes as `generate` does; tests compare them."""
_PROBE_SIZE = 224
"""Width and height of the image with which other models are tried, in pixels."""
_PROBE_TOKENS = 6


def load_generation(
    source: ModelFolder,
    parameters: TextGenerationParameters,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rules: AccessRules,
    engine: type[GenerationEngine],
) -> TextGeneration:
    """Load a model for texts, and for images if it has a vision encoder. See `TextGeneration`.

    If the processor of a vision-language model cannot be loaded, rows without images are computed nevertheless.

    Raises:
        InvalidModel: The model cannot be loaded, or its processor needs a package that this host lacks.
    """
    if not takes_images(source.path, name=source.name):
        return TextGeneration(source, parameters, device=device, dtype=dtype, engine=engine)
    try:
        processor = load_chat_processor(source)
    except InvalidModel as error:
        if isinstance(error.__cause__, ImportError):  # other hosts may have it, and rows must not depend on the host
            raise
        reason = f"the messages have images, which cannot be prepared here: {error.message}"
        logger.warning("rows with images will fail: %s", reason)
        return TextGeneration(source, parameters, device=device, dtype=dtype, engine=engine, no_images=reason)
    return VisionGeneration(
        source, parameters, device=device, dtype=dtype, engine=engine, processor=processor, rules=rules
    )


class VisionGeneration(TextGeneration):
    """A decoder with a vision encoder. Rows are encoded one by one, since opening images takes long."""

    def __init__(
        self,
        source: ModelFolder,
        parameters: TextGenerationParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
        processor: Any,
        rules: AccessRules,
        engine: type[GenerationEngine] = DecodingLoop,
    ) -> None:
        """See `TextGeneration`; `processor` and `rules` are required here."""
        super().__init__(
            source, parameters, device=device, dtype=dtype, engine=engine, processor=processor, rules=rules
        )
        logger.info("images are prepared by %s", type(processor.image_processor).__name__)
        self._prompts_of_threads: dict[int, ImagePrompts] = {}
        if self._model.config.model_type not in _KNOWN:
            self._check_images()

    def _check_images(self) -> None:
        """Let the engine try a row with an image beside one without."""
        pixels = np.arange(_PROBE_SIZE * _PROBE_SIZE * 3, dtype=np.uint32).reshape(_PROBE_SIZE, _PROBE_SIZE, 3)
        image = importlib.import_module("PIL.Image").fromarray((pixels * 7919 >> 4).astype(np.uint8))
        contents = ([{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}], "Who are you?")
        chats = [[{"role": "user", "content": content}] for content in contents]
        own = {"max_new_tokens": _PROBE_TOKENS, "do_sample": False, "logprobs": True}
        rows = [Row(index, None, {"text": chat, "parameters": own}) for index, chat in enumerate(chats)]
        encoded = self.encode(rows)
        for one, kind in zip(encoded, ("with images", "without images"), strict=True):
            if one.error is not None:
                logger.warning("chats %s will fail: %s", kind, one.error.message)
        self._engine.check_images(self.collate([one for one in encoded if one.error is None]))

    def for_thread(self, number: int) -> Self:
        """See `EncodesRowByRow`. Copying tokenizers takes long, so the copies are kept for later leases."""
        if number not in self._prompts_of_threads:
            assert isinstance(self._prompts, ImagePrompts)
            self._prompts_of_threads[number] = self._prompts.copied()
        other = copy.copy(self)
        other._prompts = self._prompts_of_threads[number]
        return other
