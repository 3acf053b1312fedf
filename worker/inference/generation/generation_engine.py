"""What text generation asks of an engine: our own decoding loop or vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from worker.inference.generation.continuations import Continuation, Request
from worker.models.load import ModelFolder

FindsStop = Callable[[Request, Sequence[int]], bool]
"""Whether a stop string of a request is in the text of its tokens so far, the last of which is new."""


class GenerationEngine(Protocol):
    """An engine with one model, which continues the prompts of a chunk. Used by one thread."""

    needs_whole_device: ClassVar[bool]
    """Whether it takes the memory that the device has free and holds it until it is closed."""
    prepares_images: ClassVar[bool]
    """Whether it prepares images itself; otherwise it takes the tensors of the model's processor."""
    memory_bytes: int
    """Memory that the model's weights take on the device."""
    longest: int | None
    """Most tokens of a row, prompt included; None where only the model sets a limit."""

    def __init__(
        self,
        source: ModelFolder,
        model: PreTrainedModel,
        *,
        device: torch.device,
        pad_token: int,
        finds_stop: FindsStop,
    ) -> None:
        """Start the engine.

        Args:
            source: The model's files.
            model: What `load_model` returned.
            device: Where the engine computes.
            pad_token: Any token that the model has.
            finds_stop: Finds stop strings.

        Raises:
            InvalidSpec: The engine is not installed or does not take the model.
            DeviceOutOfMemory: The device has too little memory.
        """
        ...

    @staticmethod
    def load_model(source: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Load the model, or only its outline where the engine loads the weights by itself.

        Raises:
            InvalidModel: It cannot be loaded, or is not a decoder.
        """
        ...

    def generate(
        self, requests: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """Continue every request until it is done.

        Args:
            requests: At least one.
            max_tokens: Most tokens of the rows that are computed together, each counted as the longest of them. A row
                that alone has more is computed alone. An engine that plans its memory itself ignores this.
            max_rows: Most rows that are computed together; likewise.
            between: Called before each forward pass; an exception that it raises ends all requests.

        Returns:
            The continuations of each request, in order.
        """
        ...

    def check_images(self, requests: Sequence[Request]) -> None:
        """Find out how to compute the rows of a vision-language model of an unknown kind.

        Args:
            requests: Requests with and without images, greedy and with log-probabilities.
        """
        ...

    def close(self) -> None:
        """Free what dropping the engine would not free. It generates nothing afterwards."""
        ...
