"""Real pictures that need no download: the 1,797 handwritten digits that come with scikit-learn.

They are the test set of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998).
B: batch, C: channels (1), H, W: height and width (8).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from jobs.errors import InvalidSpec

SIDE = 8
NUM_CLASSES = 10
_BRIGHTEST = 16
_GRID_COLUMNS = 8
_FRAME = 0.3
"""Brightness of the lines between pictures."""
_SCALE = 8
"""Width and height in the written picture of one pixel of a digit."""


class Digits:
    """Rows of (picture, digit): a float32 tensor (1, 8, 8) from 0 to 1, and an integer."""

    def __init__(self, images_NCHW: torch.Tensor, labels_N: Sequence[int], *, shift: int = 0) -> None:
        """
        Args:
            images_NCHW: All pictures.
            labels_N: The digit of each picture.
            shift: The most pixels by which a picture is moved at random in each direction whenever it is read.
        """
        self.images_NCHW, self._labels_N, self._shift = images_NCHW, list(labels_N), shift

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, int]:
        image_CHW = self.images_NCHW[index]
        if self._shift:
            padded_CHW = functional.pad(image_CHW, [self._shift] * 4)
            top, left = torch.randint(0, 2 * self._shift + 1, (2,)).tolist()
            image_CHW = padded_CHW[:, top : top + SIDE, left : left + SIDE]
        return image_CHW, self._labels_N[index]


def load_digits(recipe: str, *, shift: int = 0) -> tuple[Digits, Digits]:
    """Return the rows to train on, and a fifth that is held out. The split does not depend on the seed.

    Args:
        recipe: Name of the recipe, for the error message.
        shift: The shift of the rows to train on; see `Digits`.

    Raises:
        InvalidSpec: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InvalidSpec(
            f"module: recipes.{recipe} needs scikit-learn: pip install 'stoker[recipes]'", param="module"
        ) from error
    found = datasets.load_digits()
    images_NCHW = torch.from_numpy(found.images.astype(np.float32))[:, None] / _BRIGHTEST
    labels = found.target.tolist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    held_out, learned = order[: len(order) // 5], order[len(order) // 5 :]
    return (
        Digits(images_NCHW[learned], [labels[row] for row in learned], shift=shift),
        Digits(images_NCHW[held_out], [labels[row] for row in held_out]),
    )


def write_grid(path: Path, images_NCHW: torch.Tensor) -> None:
    """Write pictures side by side, eight in a line, as a PNG.

    Args:
        path: The path of the file.
        images_NCHW: Gray pictures from 0 to 1; their number must be a multiple of eight.
    """
    from PIL import Image

    framed_NCHW = functional.pad(images_NCHW.detach().float().cpu(), [1] * 4, value=_FRAME)
    _, _, height, width = framed_NCHW.shape
    lines_LKHW = framed_NCHW.reshape(-1, _GRID_COLUMNS, height, width)
    sheet_HW = lines_LKHW.permute(0, 2, 1, 3).reshape(-1, _GRID_COLUMNS * width)
    gray_HW = (sheet_HW.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    size = (gray_HW.shape[1] * _SCALE, gray_HW.shape[0] * _SCALE)
    Image.fromarray(gray_HW).resize(size, Image.Resampling.NEAREST).save(path)
