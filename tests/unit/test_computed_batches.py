"""A computed batch counts the memory of its features and of its outputs, wherever these hold tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from jobs.data.rows import Row, RowError
from jobs.ledger.chunks import Claim
from tests.support.task_kit import load
from tests.support.tiny import tiny_image_classifier
from worker.device import tensor_bytes
from worker.inference.chunks import BatchGroup, ComputedGroup, OpenChunk, Piece
from worker.models.task_model import Encoded


def test_tensors_are_counted_at_any_depth() -> None:
    one = torch.zeros(10)
    assert tensor_bytes(one) == 40
    assert tensor_bytes({"a": [one.clone(), (one.clone(), "text")], "b": {"c": one}, "d": None}) == 120
    assert tensor_bytes([one, {"again": one}]) == 40
    assert tensor_bytes(["text", 7]) == 0


def test_a_computed_group_holds_its_features_and_outputs() -> None:
    rows = [Row(index, None, {"image": "x"}) for index in range(2)]
    members = [Encoded(row, 1, None, num_bytes=1000) for row in rows]
    one = BatchGroup(OpenChunk(Claim(0, 2, {}, 1, 0, None), rows), [members], [None], is_last=True)
    failed = Piece(members[1:], None, error=RowError("row_failed", "no"))
    pieces = [Piece(members[:1], [([(0, 0)], {"logits": torch.zeros(5)})]), failed]
    assert ComputedGroup(one, pieces).num_bytes == 2020


def test_outputs_of_a_pipeline_do_not_keep_its_inputs(tmp_path: Path) -> None:
    """Images take a thousand times the memory of their scores, and wait with them for the decoding thread."""
    model = load("image-classification", tiny_image_classifier(tmp_path))
    batch = model.encode([Row(index, None, {"image": Image.new("RGB", (30, 40))}) for index in range(3)])
    outputs = model.forward(model.collate(batch))
    assert 0 < tensor_bytes(outputs) < 1000 < sum(one.num_bytes for one in batch)
