"""The options of the recipes, with types and defaults. An error message is one sentence that names the option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.messages import first_fault

Width = Annotated[int, Field(ge=1, le=4096)]
"""Units or channels of a layer."""
Rate = Annotated[float, Field(gt=0, le=10)]
"""A learning rate."""


class Options(BaseModel):
    """A recipe's options. A subclass has a field with a default for each option."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    old_names: ClassVar[Mapping[str, str]] = {}
    """Names from the last release that are still accepted -> the names that they have now."""


class CnnOptions(Options):
    """Options of `recipes.cnn`."""

    channels: Width = 16
    """Channels of the first convolution; the second has twice as many."""
    hidden: Width = 64
    """Units of the first linear layer."""
    learning_rate: Rate = 0.05
    """Learning rate at the start; it falls to zero along half a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    augment: bool = True
    """Whether each picture is moved by up to one pixel at random in each epoch."""


class LstmOptions(Options):
    """Options of `recipes.lstm`."""

    hidden: Width = 64
    """Units of each layer."""
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the final linear layer."""
    learning_rate: Rate = 0.005


class VaeOptions(Options):
    """Options of `recipes.vae`."""

    latent: Width = 8
    """Number of latent variables of a picture."""
    hidden: Width = 128
    """Units of the hidden layer on either side."""
    learning_rate: Rate = 0.002


class GanOptions(Options):
    """Options of `recipes.gan`."""

    noise: Width = 16
    """Number of noise values from which a picture is generated."""
    hidden: Width = 64
    """Units of each hidden layer."""
    learning_rate: Rate = 0.002
    """Learning rate of both optimizers."""
    real_label: Annotated[float, Field(gt=0.5, le=1)] = 0.9
    """The discriminator's target for real pictures. Below 1 it stays uncertain, which helps the generator to learn."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout of the discriminator's hidden layers."""


class CtcOptions(Options):
    """Options of `recipes.ctc`."""

    old_names: ClassVar[Mapping[str, str]] = {"judged_rows": "eval_rows"}

    rows: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Number of utterances to train on."""
    eval_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Number of utterances to evaluate."""
    min_letters: Annotated[int, Field(ge=1, le=100)] = 3
    """Minimum number of letters of an utterance."""
    max_letters: Annotated[int, Field(ge=1, le=100)] = 7
    """Maximum number of letters of an utterance."""
    noise: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Standard deviation of the noise; a tone's amplitude is about 1."""
    channels: Width = 64
    """Channels of the convolution."""
    hidden: Width = 64
    """Units of the recurrent layer."""
    learning_rate: Rate = 0.01

    @model_validator(mode="after")
    def _most_letters(self) -> CtcOptions:
        if self.max_letters < self.min_letters:
            raise ValueError("options.max_letters: must be at least options.min_letters")
        return self


OPTIONS: Mapping[str, type[Options]] = {
    "cnn": CnnOptions,
    "lstm": LstmOptions,
    "vae": VaeOptions,
    "gan": GanOptions,
    "ctc": CtcOptions,
}
"""Name of a recipe -> the model of its options."""
OptionsT = TypeVar("OptionsT", bound=Options)


def read_options(kind: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
    """Check a spec's options.

    Args:
        kind: The model of the recipe's options.
        given: The spec's `options`.

    Raises:
        ValueError: An option is unknown or has an invalid value; the message begins with `options.` and its name.
    """
    named: dict[str, Any] = {}
    for name, value in sorted(given.items(), key=lambda item: item[0] in kind.old_names):
        new_name = kind.old_names.get(name, name)
        if new_name not in kind.model_fields:
            raise ValueError(f"options.{name}: unknown option; the options are {', '.join(kind.model_fields)}")
        if new_name in named:
            raise ValueError(f"options.{name}: is the old name of options.{new_name}; set only one of them")
        named[new_name] = value
    try:
        return kind.model_validate(named)
    except ValidationError as error:
        name, phrase = first_fault(error.errors())
        raise ValueError(f"options.{name}: {phrase}" if name else phrase) from error
