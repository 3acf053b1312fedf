"""A last layer with weights in oneDNN's form computes what torch's own does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.support import tiny_media
from worker.models.kernels.packed_output import pack_output_layer

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def model(tmp_path: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(tiny_media.tiny_whisper(tmp_path)).eval()


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (16, 1), (80, 1), (3, 7), (0, 1)])
def test_outputs_are_those_of_torch(shape: tuple[int, int], model: WhisperForConditionalGeneration) -> None:
    hidden = torch.randn(*shape, model.config.d_model, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.proj_out(hidden)
        assert pack_output_layer(model) == model.proj_out.weight.nbytes
        assert "forward" in vars(model.proj_out)
        torch.testing.assert_close(model.proj_out(hidden), expected, atol=2e-6, rtol=1e-5)
        turned = hidden.transpose(0, 1).contiguous().transpose(0, 1)
        torch.testing.assert_close(model.proj_out(turned), expected, atol=2e-6, rtol=1e-5)


def test_the_weights_stay_those_of_the_embeddings(model: WhisperForConditionalGeneration) -> None:
    pack_output_layer(model)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_other_types_of_numbers_stay_as_they_are(model: WhisperForConditionalGeneration) -> None:
    assert pack_output_layer(model.to(torch.bfloat16)) == 0
    assert "forward" not in vars(model.proj_out)
