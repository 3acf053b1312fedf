"""Load a model, its config and its tokenizer: only safetensors, only trusted code, never untrained weights."""

from __future__ import annotations

import errno
import fnmatch
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from jobs.access.model_check import check_folder, local_model, readable
from jobs.access.model_files import read_json
from jobs.config.access_rules import AccessRules
from jobs.errors import InvalidModel, MachineError, ServiceUnavailable, StokerError
from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned
from worker.models.kernels.attention_types import keep_attention_type
from worker.models.kernels.onednn_linear import use_onednn
from worker.models.model_ref import ModelRef

logger = logging.getLogger(__name__)

_WANTED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.safetensors")
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*.safetensors")
_WITH_CODE = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Files whose `auto_map` names classes in the model's own code."""
_BENIGN_MISSING = ("*position_ids", "*.rotary_emb.inv_freq", "*relative_position_index")
"""Buffers that are computed from the config; some checkpoints contain them and others do not."""
_MACHINE_ERRNOS = frozenset(
    {
        errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO,
        errno.ENODEV, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EROFS, errno.EBUSY, errno.EAGAIN, errno.EINTR,
    }
)  # fmt: skip
"""Errors of a disk, a network file system or an overloaded host; any other errno means that the file is invalid."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder with a model's files on this machine."""

    name: str
    """The name that the user gave."""
    path: Path
    trust_remote_code: bool
    """Whether the operator allows this model to run its own code."""

    def invalid(self, reason: str) -> InvalidModel:
        """Make the error for this model, with a reason."""
        return InvalidModel(f"model '{self.name}': {reason}", param="model")


def find_model(ref: ModelRef, rules: AccessRules) -> ModelFolder:
    """Return the folder of a model, checked for its task. A hub id that is not in the local cache is downloaded.

    Raises:
        InvalidModel: There is no such model, or it is not suitable for this task.
        Forbidden: A local model lies outside the input roots.
        ServiceUnavailable: The hub cannot be reached.
    """
    found = fetch_model(ref.source, rules)
    check_folder(found.path, ref.task, name=ref.source, may_read=readable(ref.source, rules))
    return found


def fetch_model(model: str, rules: AccessRules) -> ModelFolder:
    """Return the folder of a model or processor, unchecked. A hub id that is not in the local cache is downloaded.

    Raises:
        InvalidModel: There is no model with this name.
        Forbidden: The folder lies outside the input roots.
        ServiceUnavailable: The hub cannot be reached.
    """
    folder = local_model(model, rules)
    names = {model, model.partition("@")[0]} if folder is None else {model, str(folder)}
    trusted = not names.isdisjoint(rules.trusted_remote_code)
    if folder is None:
        folder = _download(model, with_code=trusted)
    if trusted:
        _check_code(model, folder, rules)
    return ModelFolder(name=model, path=folder, trust_remote_code=trusted)


def _check_code(model: str, folder: Path, rules: AccessRules) -> None:
    """Reject a model that uses code from another model, unless the operator has listed that one too."""
    for file in _WITH_CODE:
        classes = read_json(folder / file, name=model, required=False).get("auto_map")
        for value in classes.values() if isinstance(classes, dict) else [classes]:
            for name in value if isinstance(value, list) else [value]:
                other, is_elsewhere, _ = name.partition("--") if isinstance(name, str) else ("", "", "")
                if is_elsewhere and other not in rules.trusted_remote_code:
                    reason = f"its {file} loads code from '{other}', which is not listed (setting trusted_remote_code)"
                    raise InvalidModel(f"model '{model}': {reason}", param="model")


def _download(model: str, *, with_code: bool) -> Path:
    repository, _, revision = model.partition("@")
    wanted = [*_WANTED, "*.py"] if with_code else list(_WANTED)

    def invalid(reason: str) -> InvalidModel:
        return InvalidModel(f"model '{model}': {reason}", param="model")

    try:
        path = snapshot_download(
            repository, revision=revision or None, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)
        )
    except GatedRepoError as error:
        raise invalid(
            "its license must be accepted on the hub first, with the account that HF_TOKEN belongs to"
        ) from error
    except RevisionNotFoundError as error:
        raise invalid(f"the hub has no revision '{revision}' of it") from error
    except RepositoryNotFoundError as error:
        raise invalid("the hub has no such model, or it is private and HF_TOKEN gives no access to it") from error
    except HFValidationError as error:
        raise invalid("is not a hub id such as org/name or org/name@revision") from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise invalid("is not in the local cache, and the hub is disabled (HF_HUB_OFFLINE)") from error
        raise ServiceUnavailable(f"model '{model}': the hub cannot be reached, and the model is not cached") from error
    except (HfHubHTTPError, OSError) as error:
        # Any other error comes from the hub, the network or this host's disk.
        raise ServiceUnavailable(f"model '{model}': downloading it failed: {one_line(error)}") from error
    return Path(path)


def load_config(source: ModelFolder, *, subfolder: str = "", **overrides: Any) -> PretrainedConfig:
    """Load a model's configuration.

    Raises:
        InvalidModel: The model is of a type that transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(
            source.path / subfolder, trust_remote_code=source.trust_remote_code, **overrides
        )
    except Exception as error:
        raise _explained(source, error) from error


def load_tokenizer(source: ModelFolder, *, subfolder: str = "", **overrides: Any) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        InvalidModel: The tokenizer is missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source.path / subfolder, trust_remote_code=source.trust_remote_code, **overrides
        )
    except Exception as error:
        raise load_error(source.name, error, what="its tokenizer cannot be loaded") from error


def load_weights(
    source: ModelFolder,
    model_class: Any,
    *,
    task: str,
    device: torch.device,
    dtype: torch.dtype,
    may_miss: Sequence[str] = (),
    subfolder: str = "",
    **overrides: Any,
) -> PreTrainedModel:
    """Load a model onto its device, ready for inference. Every weight that the task uses comes from the files.

    Args:
        source: The model's folder.
        model_class: An Auto class or a model class of transformers.
        task: The task, for error messages.
        device: The device that the model is loaded onto.
        dtype: The dtype of its weights.
        may_miss: Patterns of weights that the task never uses, such as the pooler of an encoder.
        subfolder: The subfolder with the weights.
        overrides: Further arguments of `from_pretrained`.

    Raises:
        InvalidModel: The model cannot be loaded, or weights that the task needs are missing from its files.
    """
    transformers.logging.disable_progress_bar()  # a runner's stderr is the job's log
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # missing weights are reported by an InvalidModel error instead
    try:
        model, info = model_class.from_pretrained(
            source.path / subfolder,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            dtype=dtype,
            **overrides,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _explained(source, error) from error
    finally:
        transformers.logging.set_verbosity(before)
    _check_complete(source, info, task, may_miss, encoder=f"{model.base_model_prefix}.")
    keep_attention_type(model)
    if device.type == "cpu":
        use_onednn(model)
    return model.eval().requires_grad_(False).to(device)


def memory_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights and buffers; tied weights are counted once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def _check_complete(
    source: ModelFolder, info: dict[str, Any], task: str, may_miss: Sequence[str], *, encoder: str
) -> None:
    mismatched = sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()))
    if mismatched:
        raise source.invalid(f"its weight '{mismatched[0]}' does not have the shape that its config.json gives")
    patterns = (*_BENIGN_MISSING, *may_miss)
    missing = [
        key for key in info.get("missing_keys", ()) if not any(fnmatch.fnmatch(key, pattern) for pattern in patterns)
    ]
    missing.sort(key=lambda key: (key.startswith(encoder), key))  # the message names a weight of the head if it can
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise source.invalid(
            f"it has no trained weights for '{missing[0]}'{more}, so it has no {task} head; its outputs would be random"
        )


def load_error(name: str, error: Exception, *, what: str = "cannot be loaded") -> StokerError:
    """Convert an error raised while a model was loaded or set up for a task.

    The same files and code raise the same error on every machine, so it is a user error and not retried. Only errors of
    memory, a device, a disk or the network are machine errors, which are retried.

    Args:
        name: The user's name for the model.
        error: The exception. A `StokerError` is returned unchanged.
        what: What failed, for the message.
    """
    if isinstance(error, StokerError):
        return error
    if is_poisoned(error):
        return MachineError(f"the device failed and needs a new process: {one_line(error)}")
    for cause in _causes(error):
        if is_out_of_memory(cause):
            return ServiceUnavailable(f"model '{name}': there is too little memory to load it: {one_line(cause)}")
        if _is_machines(cause):
            return ServiceUnavailable(f"model '{name}': its files cannot be read now: {one_line(cause)}")
    return InvalidModel(f"model '{name}': {what}: {one_line(error)}", param="model")


def _is_machines(error: BaseException) -> bool:
    if isinstance(error, (HfHubHTTPError, TimeoutError)):
        return True
    if isinstance(error, ConnectionError):
        return not constants.HF_HUB_OFFLINE  # with the hub switched off, a retry cannot help
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, since libraries wrap errors of the disk in their own."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _explained(source: ModelFolder, error: Exception) -> StokerError:
    found = load_error(source.name, error)
    if not isinstance(found, InvalidModel) or found is error:
        return found
    message = str(error)
    if "trust_remote_code" in message:
        return source.invalid(
            "needs its own code, which only the operator can allow (setting trusted_remote_code); read that code first"
        )
    if isinstance(error, RuntimeError) and "ismatch" in message:
        return source.invalid("its weights do not have the shapes that its config.json gives")
    if isinstance(error, KeyError):
        return source.invalid(f"its config.json has no {error}")
    return found
