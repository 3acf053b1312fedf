"""Linear layers in float32 through oneDNN on AMD CPUs with AVX-512, where MKL uses half of each register.

torch computes `nn.Linear` in float32 with MKL. Measured on one core of an EPYC with AVX-512, for 3,072 tokens and a
weight of (384, 1536): 100 GFLOP/s with MKL, 215 with oneDNN. The outputs differ in the last bits. The operator is a
private one of torch, which torch's compiler uses; where it is missing, MKL stays.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_LEAST_ROWS = 16
"""With fewer rows, calling oneDNN costs more than it saves."""
_CPU_INFO = Path("/proc/cpuinfo")


class OneDnnLinear(nn.Linear):
    """A linear layer that computes through oneDNN when nothing needs its gradient."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """Map (..., in_features) to (..., out_features)."""
        is_plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        if not is_plain or input.numel() < _LEAST_ROWS * self.in_features or self._needs_gradient(input):
            return super().forward(input)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return found

    def _needs_gradient(self, input: Tensor) -> bool:  # noqa: A002
        return torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)


def use_onednn(model: nn.Module) -> None:
    """Make the linear layers of a loaded model compute through oneDNN if this CPU is faster with it."""
    if is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:  # a subclass may compute something else
                module.__class__ = OneDnnLinear


@lru_cache(maxsize=1)
def is_faster() -> bool:
    """Whether float32 is faster with oneDNN than with MKL on this CPU.

    Not measured on the spot: the last bits of an output must not depend on how busy the machine was.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_both:
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    if "AuthenticAMD" not in (_CPU_INFO.read_text() if _CPU_INFO.is_file() else ""):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        logger.warning(
            "torch %s lacks mkldnn._linear_pointwise, so float32 is slower than it could be", torch.__version__
        )
        return False
    return True
