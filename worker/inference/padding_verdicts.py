"""Which rows of a model may share a batch: recorded for all runners, and shown to the job if it makes it slower."""

from __future__ import annotations

import hashlib
import logging
from typing import Protocol, runtime_checkable

import tokenizers
import torch
import transformers
from sqlalchemy import select
from sqlmodel import col
from transformers import PreTrainedModel

from jobs.config.packed_attention import PackedAttention
from jobs.db.database import Database
from jobs.db.tables import PaddingVerdict
from jobs.errors import ServiceUnavailable
from jobs.ledger.records import notices
from jobs.messages import one_line
from worker.device import device_name, is_out_of_memory, release_memory
from worker.models.kernels.packed_attention import implementation_for, pack_attention
from worker.models.model_ref import ModelRef
from worker.models.task_model import JoinsEqualParts, TaskModel
from worker.models.texts.padding import NOTICES, Padding
from worker.models.texts.tokens import Tokens
from worker.models.transformers_internals import attention_implementation

logger = logging.getLogger(__name__)

_SAMPLES = 16
"""Values that are read from each weight, to distinguish models whose weights have the same shapes."""


@runtime_checkable
class PadsRows(Protocol):
    """A `TaskModel` of texts, whose rows may be padded to one length if its model allows that."""

    tokens: Tokens
    """Shared by all copies with other parameters. Its `padding` is which rows may share a batch."""
    model: PreTrainedModel

    def probe_padding(self, *, packs: bool = False) -> Padding:
        """Find out which rows may share a batch, by a few forward passes.

        Args:
            packs: Whether rows are packed, without padding, if the model computes them right. Its attention is then
                changed for this.

        Raises:
            RuntimeError: The device has too little memory.
        """
        ...


def is_packed(model: TaskModel) -> bool:
    """Whether batches of a model are computed without padding."""
    if isinstance(model, JoinsEqualParts):
        return model.pads_nothing
    return isinstance(model, PadsRows) and model.tokens.padding == Padding.PACKED


def settle_padding(
    model: TaskModel,
    ref: ModelRef,
    job_id: str,
    *,
    database: Database,
    device: torch.device,
    packed_attention: PackedAttention = PackedAttention.AUTO,
) -> None:
    """Set which rows of a model may share a batch, probing if unknown, and add a notice to the job if few may.

    Args:
        model: The model, which must not be computing anything now.
        ref: The name of the model.
        job_id: The job that gets the notice.
        device: Where the model is loaded.
        packed_attention: Whether rows are packed, without padding, if the model computes them right.
    """
    if not isinstance(model, PadsRows):
        return
    if model.tokens.padding is None:
        packs = packed_attention == PackedAttention.ON
        if packed_attention == PackedAttention.AUTO:
            packs = device.type == "cuda" and model.model.dtype in (torch.bfloat16, torch.float16)
        model.tokens.padding = _find_padding(model, ref, database, device, packs=packs)
    message = NOTICES.get(model.tokens.padding)
    if message is None:
        return
    logger.warning("%s", message)
    try:
        notices.add(database, job_id, notices.PADDING, message)
    except ServiceUnavailable as error:  # the job itself does not depend on it
        logger.warning("the notice could not be added to the job: %s", error)


def _find_padding(model: PadsRows, ref: ModelRef, database: Database, device: torch.device, *, packs: bool) -> Padding:
    name = device_name(device)
    fingerprint = fingerprint_of(model.model, model.tokens, packs=packs)
    with database.read() as session:
        known = session.scalar(
            select(col(PaddingVerdict.padding)).where(
                col(PaddingVerdict.task) == ref.task,
                col(PaddingVerdict.fingerprint) == fingerprint,
                col(PaddingVerdict.device_name) == name,
            )
        )
    if known is not None and known in list(Padding) and (known != Padding.PACKED or pack_attention(model.model)):
        return Padding(known)
    try:
        found = model.probe_padding(packs=packs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("too little memory to test whether padding changes the model's outputs: %s", one_line(error))
        found = None
    if found is None:  # outside the except block, whose frames hold the tensors
        release_memory(device)
        return Padding.EQUAL_LENGTHS
    logger.info("how rows are padded: %s", found.value)
    try:
        with database.write() as session:
            fresh = session.insert(PaddingVerdict).values(
                task=ref.task,
                fingerprint=fingerprint,
                device_name=name,
                padding=found.value,
                model_key=ref.key,
                recorded_at=session.time(),
            )
            session.execute(fresh.on_conflict_do_nothing())
    except ServiceUnavailable as error:  # only a hint for later leases; this one continues without it
        logger.warning("the result of the padding test could not be recorded: %s", error)
    return found


def fingerprint_of(model: PreTrainedModel, tokens: Tokens, *, packs: bool = False) -> str:
    """A hash of what the effect of padding depends on: config, weights, dtype, tokenizer and library versions.

    Only a few values of each weight are read, all in one copy from the device, so that this is cheaper than a probe.
    """
    digest = hashlib.sha256()
    tokenizer = tokens.tokenizer
    facts = [
        type(model).__qualname__,
        model.config.to_json_string(use_diff=False),
        str(model.dtype),
        attention_implementation(model),
        implementation_for(model.device) if packs else "",
        repr((tokenizer.padding_side, tokens.pad_token_id, tokenizer.eos_token_id, len(tokenizer))),
        torch.__version__,
        transformers.__version__,
        tokenizers.__version__,
    ]
    digest.update("\n".join(facts).encode())
    samples = []
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        flat = weight.detach().reshape(-1)
        samples.append(flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].float())
    if samples:
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()
