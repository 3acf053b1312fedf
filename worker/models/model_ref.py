"""The model of a leased job, as the cache, the budget and the loader identify it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.specs.inference import InferenceSpec, model_key


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model for one task. Jobs with equal refs can share one loaded model."""

    key: str
    """The scheduler's name for it, under which safe batch sizes are remembered. Equal for all commits of a model."""
    task: str
    name: str
    """The user's name for it: a folder, a hub id or `job:<id>`."""
    source: str
    """The name that it is loaded by: `name`, but `org/name@commit` for a hub id."""
    dtype: str
    """The spec's `dtype`: `auto` means the one that fits the device."""
    engine: str
    """The engine that generates text: `transformers` or `vllm`."""

    @classmethod
    def of(cls, spec: InferenceSpec, *, source: str | None = None) -> ModelRef:
        """The ref of a spec's model.

        Args:
            spec: The spec of the job.
            source: The name that the model is loaded by, if the job has pinned one.
        """
        return cls(
            key=model_key(spec),
            task=spec.task,
            name=spec.model,
            source=spec.model if source is None else source,
            dtype=spec.dtype,
            engine="transformers" if spec.engine == "auto" else spec.engine,
        )
