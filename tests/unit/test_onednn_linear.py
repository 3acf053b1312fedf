"""Linear layers through oneDNN compute what torch's own do, and leave everything else to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from worker.models.kernels import onednn_linear
from worker.models.kernels.onednn_linear import OneDnnLinear, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def on_a_cpu_that_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "is_faster", lambda: True)


def _pair(num_in: int, num_out: int, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(num_in, num_out, bias=bias).requires_grad_(False)
    changed = copy.deepcopy(plain)
    use_onednn(changed)
    assert type(changed) is OneDnnLinear
    return plain, changed


@pytest.mark.parametrize("shape", [(1, 32), (17, 32), (300, 32), (3, 40, 32), (2, 3, 50, 32), (0, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    plain, changed = _pair(32, 48, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(changed(inputs), plain(inputs), atol=2e-6, rtol=1e-5)


def test_inputs_that_are_not_contiguous_are_right() -> None:
    plain, changed = _pair(32, 48)
    with torch.inference_mode():
        for inputs in (torch.randn(32, 100).t(), torch.randn(5, 32, 40).transpose(1, 2), torch.randn(90, 64)[:, ::2]):
            torch.testing.assert_close(changed(inputs), plain(inputs), atol=2e-6, rtol=1e-5)


def test_equal_shapes_give_equal_bits() -> None:
    _, changed = _pair(64, 64)
    inputs = torch.randn(123, 64)
    with torch.inference_mode():
        assert torch.equal(changed(inputs), changed(inputs.clone()))


def test_gradients_are_those_of_torch() -> None:
    plain, changed = _pair(32, 48)
    for layer in (plain, changed):
        layer.requires_grad_(True)
        inputs = torch.ones(100, 32, requires_grad=True)
        layer(inputs).square().sum().backward()
        layer.found = (inputs.grad, layer.weight.grad)
    for one, other in zip(changed.found, plain.found, strict=True):
        assert torch.equal(one, other)


def test_other_dtypes_are_left_to_torch() -> None:
    plain, changed = (layer.to(torch.bfloat16) for layer in _pair(32, 48))
    inputs = torch.randn(100, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(changed(inputs), plain(inputs))


def test_layers_that_compute_something_else_keep_their_class() -> None:
    class Doubled(nn.Linear):
        def forward(self, vectors: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(vectors)

    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    before = model.state_dict()
    use_onednn(model)
    assert [type(module) for module in model] == [Doubled, OneDnnLinear, nn.LayerNorm]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cpu_that_does_not_gain_keeps_torchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "is_faster", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))
    use_onednn(model)
    assert type(model[0]) is nn.Linear
