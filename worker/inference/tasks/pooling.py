"""Compute one vector from the vectors of a row's tokens, with the arithmetic of sentence-transformers' modules.

Shapes: B rows, T tokens, D dimensions of a token's vector, E dimensions of a row's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.access.model_files import check_safetensors, read_json
from jobs.data.rows import RowError
from worker.models.load import ModelFolder
from worker.models.task_model import NOT_FINITE

PoolingMode = Callable[[Tensor, Tensor, Tensor], Tensor]


def _mean(hidden_BTD: Tensor, pooled_BT: Tensor, _: Tensor) -> Tensor:
    return _sum(hidden_BTD, pooled_BT) / _count(pooled_BT)


def _mean_sqrt_len(hidden_BTD: Tensor, pooled_BT: Tensor, _: Tensor) -> Tensor:
    return _sum(hidden_BTD, pooled_BT) / _count(pooled_BT).sqrt()


def _weighted_mean(hidden_BTD: Tensor, pooled_BT: Tensor, _: Tensor) -> Tensor:
    weights_BT = pooled_BT * torch.arange(1, pooled_BT.shape[1] + 1, device=pooled_BT.device)
    return _sum(hidden_BTD, weights_BT) / _count(weights_BT)


def _max(hidden_BTD: Tensor, pooled_BT: Tensor, _: Tensor) -> Tensor:
    return hidden_BTD.float().masked_fill(pooled_BT.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _cls(hidden_BTD: Tensor, pooled_BT: Tensor, _: Tensor) -> Tensor:
    return _pick(hidden_BTD, pooled_BT.argmax(dim=1))


def _last_token(hidden_BTD: Tensor, _: Tensor, mask_BT: Tensor) -> Tensor:
    return _pick(hidden_BTD, mask_BT.sum(dim=1) - 1)


def _sum(hidden_BTD: Tensor, weights_BT: Tensor) -> Tensor:
    return (hidden_BTD.float() * weights_BT.unsqueeze(-1)).sum(dim=1)


def _count(weights_BT: Tensor) -> Tensor:
    return weights_BT.sum(dim=1, keepdim=True).float().clamp(min=1e-9)


def _pick(hidden_BTD: Tensor, index_B: Tensor) -> Tensor:
    return hidden_BTD[torch.arange(len(index_B), device=index_B.device), index_B].float()


MODES: dict[str, PoolingMode] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
"""sentence-transformers' pooling modes. Each takes the tokens' vectors (B, T, D), which of them to pool (B, T) and
which are not padding (B, T), where padding is on the right, and returns (B, D) in float32."""


def pool(hidden_BTD: Tensor, mask_BT: Tensor, modes: Sequence[str], *, num_prompt_tokens: int = 0) -> Tensor:
    """Pool the vectors of each row's tokens.

    Args:
        hidden_BTD: The tokens' vectors.
        mask_BT: 1 for a token, 0 for padding, which is on the right.
        modes: Names in `MODES`; the vectors of several modes are concatenated.
        num_prompt_tokens: Number of leading tokens that are left out.

    Returns:
        (B, E) float32, whatever the dtype of the model.
    """
    pooled_BT = mask_BT
    if num_prompt_tokens:
        pooled_BT = mask_BT.clone()
        pooled_BT[:, :num_prompt_tokens] = 0
    return torch.cat([MODES[mode](hidden_BTD, pooled_BT, mask_BT) for mode in modes], dim=-1)


class Dense(nn.Module):
    """A linear layer with an activation, and perhaps a residual connection."""

    def __init__(self, source: ModelFolder, path: str) -> None:
        """
        Raises:
            InvalidModel: The module's files are damaged or require something that is not supported.
        """
        super().__init__()
        config = read_json(source.path / path / "config.json", name=source.name)
        num_in, num_out = int(config["in_features"]), int(config["out_features"])
        for name in ("module_input_name", "module_output_name"):
            if config.get(name, "sentence_embedding") not in ("sentence_embedding", None):
                raise source.invalid(f"its Dense module uses '{config[name]}' instead of the row's vector")
        self.linear = nn.Linear(num_in, num_out, bias=bool(config.get("bias", True)))
        self.activation = _activation(source, config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        self.is_residual = bool(config.get("use_residual"))
        if self.is_residual and num_in != num_out:
            self.residual = nn.Linear(num_in, num_out, bias=False)
        _load(self, source, path)

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        projected_BE: Tensor = self.activation(self.linear(vectors_BE))
        if not self.is_residual:
            return projected_BE
        return projected_BE + (self.residual(vectors_BE) if hasattr(self, "residual") else vectors_BE)


class LayerNorm(nn.Module):
    """Layer normalisation of a row's vector."""

    def __init__(self, source: ModelFolder, path: str) -> None:
        """
        Raises:
            InvalidModel: The module's files are damaged.
        """
        super().__init__()
        config = read_json(source.path / path / "config.json", name=source.name)
        self.norm = nn.LayerNorm(int(config["dimension"]))
        _load(self, source, path)

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Map (B, E) to (B, E)."""
        normed_BE: Tensor = self.norm(vectors_BE)
        return normed_BE


class Normalize(nn.Module):
    """Scales each vector to length 1."""

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Map (B, E) to (B, E)."""
        return functional.normalize(vectors_BE, p=2, dim=-1)


def read_head(source: ModelFolder, modules: Sequence[tuple[str, str]]) -> list[nn.Module]:
    """Load the modules that a sentence-transformers folder applies to a row's vector after pooling.

    Args:
        source: The model's files.
        modules: Kind and subfolder of each module after Pooling.

    Raises:
        InvalidModel: A module is damaged, or is not supported after pooling.
    """
    head: list[nn.Module] = []
    for kind, path in modules:
        try:
            if kind == "Dense":
                head.append(Dense(source, path))
            elif kind == "LayerNorm":
                head.append(LayerNorm(source, path))
            elif kind == "Normalize":
                head.append(Normalize())
            elif kind != "Dropout":  # Dropout does nothing outside of training
                raise source.invalid(f"its modules.json has a second {kind} module")
        except (KeyError, TypeError, ValueError) as error:
            raise source.invalid(f"the config.json of its {kind} module '{path}' is damaged: {error}") from error
    return head


def _activation(source: ModelFolder, full_name: Any) -> nn.Module:
    package, _, name = str(full_name).rpartition(".")
    found = getattr(nn, name, None) if package == "torch.nn" or package.startswith("torch.nn.modules.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise source.invalid(f"its Dense module has the activation '{full_name}', which is not one of torch.nn")
    return found()


def _load(module: nn.Module, source: ModelFolder, path: str) -> None:
    file = source.path / path / "model.safetensors"
    if not file.is_file() and (source.path / path / "pytorch_model.bin").is_file():
        raise source.invalid(
            f"the weights of its module '{path}' are only in pytorch_model.bin, a pickle, which can run code when it is"
            " loaded; save the model again with a current sentence-transformers"
        )
    check_safetensors(file, name=source.name)
    try:
        module.load_state_dict(safetensors.torch.load_file(file))
    except RuntimeError as error:
        raise source.invalid(f"the weights of its module '{path}' do not fit its config.json") from error


def split_rows(vectors_BE: Tensor) -> list[np.ndarray | RowError]:
    """Split a batch's vectors into one for each row, or a row error for a vector with a number that is not finite."""
    array_BE = vectors_BE.cpu().numpy()
    finite_B = np.isfinite(array_BE).all(axis=1).tolist()
    # Each row gets a copy: a view would keep the whole batch in memory as long as one of its rows is referenced.
    return [vector_E.copy() if finite else NOT_FINITE for vector_E, finite in zip(array_BE, finite_B, strict=True)]
