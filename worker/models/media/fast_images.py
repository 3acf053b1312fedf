"""Prepare images faster than a model's own processor, where that changes no value.

A processor of transformers that computes with Pillow converts an image to numbers at its full size, and back to an
image to resize it. Here Pillow resizes first, and the processor does the rest. For a GPU, the processor also leaves out
rescaling and normalization: the bytes of the pixels go to the device, a quarter of the memory of numbers, and a table
gives each byte's value there. Both are used only if the results for a few images equal those of the processor, bit by
bit.

Shapes: B rows, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned

logger = logging.getLogger(__name__)

PIXELS = "pixel_values"
_TRIED_SIZES = ((37, 50), (301, 133), (225, 224), (480, 1290))
"""Heights and widths of the images that are tried: enlarged and reduced, upright and wide."""
_AS_BYTES = {"do_rescale": False, "do_normalize": False}


@dataclass(frozen=True, slots=True)
class FastImages:
    """How the images of one model can be prepared faster."""

    values: torch.Tensor | None
    """The value of each byte in each channel, (C, 256), on the device. None if the processor makes the values."""

    def processor(self, processor: Any) -> ResizedFirst:
        """Wrap the model's processor, or a copy of it."""
        return ResizedFirst(processor, as_bytes=self.values is not None)

    def replace_bytes(self, inputs: MutableMapping[str, Any]) -> None:
        """Replace the bytes of images by their values, in a model's inputs on the device."""
        pixels_BCHW = inputs.get(PIXELS)
        if self.values is None or pixels_BCHW is None or pixels_BCHW.dtype != torch.uint8:
            return
        channels_C11 = torch.arange(self.values.shape[0], device=pixels_BCHW.device)[:, None, None]
        inputs[PIXELS] = self.values[channels_C11, pixels_BCHW.int()]


class ResizedFirst:
    """A model's image processor that gets images already resized by Pillow."""

    def __init__(self, processor: Any, *, as_bytes: bool) -> None:
        """
        Args:
            processor: The model's processor.
            as_bytes: Whether to return the bytes of the pixels instead of rescaled and normalized values.
        """
        self._processor = processor
        self._options = {"do_resize": False, **(_AS_BYTES if as_bytes else {})}

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare an RGB image or a list of them; the processor alone handles anything else."""
        together = images if isinstance(images, list) else [images]
        is_usual = all(getattr(one, "mode", None) == "RGB" for one in together) and options == {"return_tensors": "pt"}
        if not is_usual:
            return self._processor(images, **options)
        small = [self.resized(one) for one in together]
        return self._processor(small if isinstance(images, list) else small[0], **options, **self._options)

    def resized(self, image: Any) -> Any:
        """Resize an RGB image as the processor would; nothing changes if it is called for the result again."""
        return _resized(self._processor, image)


class OncePerImage:
    """An image processor that is called only once for an image, by a pipeline that calls it for each label."""

    def __init__(self, processor: Any) -> None:
        """
        Args:
            processor: The model's processor, or a faster one.
        """
        self._processor = processor
        self._last: Callable[[], Any] = lambda: None
        self._found: Any = None

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare an image, always with the same options; if it is the last one again, return the same tensors."""
        if self._last() is not images:
            self._found = self._processor(images, **options)
            self._last = weakref.ref(images)
        return BatchFeature(dict(self._found))  # pipelines change the mapping


def find_fast_images(
    processor: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    of_videos: bool = False,
    bytes_to_device: bool | None = None,
) -> FastImages | None:
    """Find out how a model's images can be prepared faster, by trying it.

    Args:
        processor: The model's image processor, or None.
        device: The device that the model computes on.
        dtype: The dtype that the model computes in.
        of_videos: Whether the processor is called with a list of a video's frames, and not with an image.
        bytes_to_device: Whether bytes go to the device; by default only to GPUs.

    Returns:
        None if only the processor itself gives the right values.
    """
    if not _resizes_by_size(processor):
        return None
    pillow = importlib.import_module("PIL.Image")
    random = np.random.default_rng(0)
    images = [
        pillow.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in _TRIED_SIZES
    ]
    if of_videos:
        images = [[image, image.rotate(180)] for image in images]
    try:
        expected = [dict(processor(image, return_tensors="pt")) for image in images]
        if any(found.keys() != {PIXELS} for found in expected):
            return None
        if bytes_to_device if bytes_to_device is not None else device.type == "cuda":
            fast = FastImages(_values_of_bytes(processor).to(device))
            if _are_equal(fast, processor, images, expected, device):
                logger.info("images are resized by Pillow and normalized on the device")
                assert fast.values is not None
                return FastImages(fast.values.to(dtype))
        fast = FastImages(None)
        if _are_equal(fast, processor, images, expected, device):
            logger.info("images are resized by Pillow before they are converted to numbers")
            return fast
    except Exception as error:  # whatever a processor raises, it can then prepare rows alone
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        logger.info("images are prepared by the processor alone, as trying another way failed: %s", one_line(error))
    return None


def _resized(processor: Any, image: Any) -> Any:
    """Resize an image with Pillow, for a processor with a fixed size, or with the length of the shortest edge."""
    size = processor.size
    if size.shortest_edge:
        # The function needs only the shape of the pixels.
        pixels_CHW = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
        height, width = get_resize_output_image_size(
            pixels_CHW, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    else:
        height, width = size.height, size.width
    return image.resize((width, height), resample=processor.resample)


def _resizes_by_size(processor: Any) -> bool:
    """Whether a processor resizes with Pillow, to a fixed size or by the shortest edge.

    A class with a `resize` of its own must give all images one size. Otherwise its result could depend on an image's
    shape in ways that the tried images do not show.
    """
    if not isinstance(processor, PilBackend):
        return False
    size = processor.size
    if not processor.do_resize or size is None or not isinstance(processor.resample, int):
        return False
    is_usual = type(processor).resize is PilBackend.resize
    return bool((size.height and size.width) or (is_usual and size.shortest_edge and not size.longest_edge))


def _values_of_bytes(processor: Any) -> torch.Tensor:
    """The value that a processor gives each byte in each channel, (C, 256) float32."""
    values_C256 = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256))
    if processor.do_rescale:
        values_C256 = processor.rescale(values_C256[..., None], processor.rescale_factor)[..., 0]
    if processor.do_normalize:
        values_C256 = processor.normalize(values_C256[..., None], processor.image_mean, processor.image_std)[..., 0]
    return torch.from_numpy(np.ascontiguousarray(values_C256, dtype=np.float32))


def _are_equal(
    fast: FastImages, processor: Any, images: list[Any], expected: list[dict[str, Any]], device: torch.device
) -> bool:
    prepare = fast.processor(processor)
    for image, values in zip(images, expected, strict=True):
        found: BatchFeature = prepare(image, return_tensors="pt")
        if found.keys() != {PIXELS} or (fast.values is not None and found[PIXELS].dtype != torch.uint8):
            return False
        inputs = {PIXELS: found[PIXELS].to(device)}
        fast.replace_bytes(inputs)
        pixels_BCHW = inputs[PIXELS].cpu()
        if pixels_BCHW.dtype != values[PIXELS].dtype or not torch.equal(pixels_BCHW, values[PIXELS]):
            return False
    return True
