"""Speech recognition beyond what its pipeline does: a sound's duration and language, long sounds, and pauses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.data.rows import RowError
from jobs.errors import InvalidSpec
from jobs.specs.parameters.media_tasks import SpeechRecognitionParameters
from worker.models import transformers_internals as internals
from worker.models.media.voice import Voice, VoiceDetector
from worker.models.transformers_internals import Call

_ENGLISH = "english"


@dataclass(frozen=True, slots=True)
class SpeechPart:
    """The part of a sound that the model gets."""

    whole_seconds: float
    """Duration of the whole sound."""
    seconds: float
    """Duration of the part that the model gets."""
    voice: Voice | None
    """The parts with speech, which the model gets; None if it gets the whole sound."""

    @property
    def is_silent(self) -> bool:
        """Whether nobody speaks, so that there is nothing to compute."""
        return self.voice is not None and not self.voice.parts


class _GenerateRecorder:
    """Stands for a pipeline's model, and keeps what its `generate` returned."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.generated: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **options: Any) -> Any:
        """Call the model's `generate`."""
        self.generated = self._model.generate(**options)
        return self.generated


class Speech:
    """What Stoker adds to the pipeline of speech recognition, for the parameters of one job."""

    def __init__(self, pipeline: Any, parameters: SpeechRecognitionParameters) -> None:
        """
        Args:
            pipeline: The pipeline, with the model.
            parameters: The job's parameters.

        Raises:
            InvalidSpec: The model cannot do what a parameter asks for.
        """
        self._pipeline = pipeline
        self._is_whisper = pipeline.model.config.model_type == "whisper"
        generation = getattr(pipeline.model, "generation_config", None)
        self._language_ids = frozenset((getattr(generation, "lang_to_id", None) or {}).values())
        self._returns_info = bool(parameters.return_info)
        self._returns_language = bool(parameters.return_language)
        self._returns_segments = bool(parameters.return_segments)
        if self._returns_segments and not self._is_whisper:
            param = "parameters.return_segments"
            raise InvalidSpec(f"{param}: only a Whisper model finds segments and words", param=param)
        self._detector = VoiceDetector("parameters.vad") if parameters.vad else None
        self._times_words = parameters.return_timestamps in ("word", "char")
        self._returns_chunks = self._returns_language or bool(parameters.return_timestamps)

    @property
    def options(self) -> dict[str, Any]:
        """Parameters of the pipeline's call that the job did not set."""
        return {"return_language": True} if self._returns_info and self._is_whisper and self._language_ids else {}

    def select(self, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], SpeechPart]:
        """Select what the model gets of a row's opened sound.

        Returns:
            The row's values with that part of the sound, and what it is of the whole one.
        """
        samples, rate = values["audio"], self._pipeline.feature_extractor.sampling_rate
        seconds = samples.shape[-1] / rate
        if self._detector is None:
            return values, SpeechPart(seconds, seconds, None)
        voice = self._detector.find(samples, rate)
        joined = voice.joined(samples)
        return {**values, "audio": joined}, SpeechPart(seconds, joined.shape[-1] / rate, voice)

    def prepare_long(self, call: Call, items: Sequence[Mapping[str, Any]]) -> None:
        """Make Whisper use timestamps for a sound that is longer than its window.

        It finds the next part of such a sound by its timestamps. The output gets them only if requested.
        """
        if not self._is_whisper or call.forward.get("return_timestamps"):
            return
        window = self._pipeline.feature_extractor.nb_max_frames
        if any(item["input_features"].shape[-1] > window for item in items):
            call.forward["return_timestamps"] = True

    def compute(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        """Run the forward pass of several rows.

        The pipeline reports the language of the first row only, so the languages of all rows are read here.

        Args:
            inputs: The joined items on the device.
            parameters: The parameters of the pipeline's `_forward`.
        """
        if not (parameters.get("return_language") and self._language_ids):
            return internals.compute(self._pipeline, inputs, parameters)
        pipeline, model = copy.copy(self._pipeline), _GenerateRecorder(self._pipeline.model)
        pipeline.model = model
        outputs = internals.compute(pipeline, inputs, parameters)
        outputs["lang_id"] = [self._language_of(segments) for segments in model.generated["segments"]]
        return outputs

    def _language_of(self, segments: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The id of the language token in a row's generated ids, (1,)."""
        for segment in segments[:1]:
            result = segment["result"]
            ids = result["sequences"] if isinstance(result, Mapping) else result
            for token in ids.tolist():
                if token in self._language_ids:
                    return torch.tensor([token])
        raise ValueError("the model reported no language for a row of the batch")  # the row is then computed alone

    def completed(self, part: SpeechPart, read: Callable[[Mapping[str, Any]], Any]) -> Any:
        """The output for a row.

        Args:
            part: The part of the sound that the model got.
            read: Returns the pipeline's output, or a row error; called unless the sound is silent. It takes parameters
                of the pipeline's `postprocess` that replace the job's.
        """
        if part.is_silent:
            output: Any = {"text": "", **({"chunks": []} if self._returns_chunks else {})}
        else:
            output = read({})
        if isinstance(output, RowError):
            return output
        if self._returns_segments:
            output["segments"] = [] if part.is_silent else read({"return_timestamps": True})["chunks"]
        return self._with_info(output, part)

    def _with_info(self, output: dict[str, Any], part: SpeechPart) -> dict[str, Any]:
        chunks: list[dict[str, Any]] = [*output.get("chunks", ()), *output.get("segments", ())]
        if part.voice is not None:
            _restore_times(output.get("chunks", ()), part.voice, is_word=self._times_words)
            _restore_times(output.get("segments", ()), part.voice, is_word=False)
        if not self._returns_info:
            return output
        language = next((chunk["language"] for chunk in chunks if chunk.get("language")), None)
        if language is None and self._is_whisper and not self._language_ids:
            language = _ENGLISH  # Whisper's models of only one language are English
        if not self._returns_language:
            for chunk in chunks:
                chunk.pop("language", None)
        if not self._returns_chunks:
            output.pop("chunks", None)
        return {**output, "duration": round(part.whole_seconds, 3), "language": language}


def _restore_times(chunks: Sequence[dict[str, Any]], voice: Voice, *, is_word: bool) -> None:
    for chunk in chunks:
        if "timestamp" in chunk:
            chunk["timestamp"] = _original_times(chunk["timestamp"], voice, is_word=is_word)


def _original_times(times: Sequence[float | None], voice: Voice, *, is_word: bool) -> list[float | None]:
    """The times of a segment or a word in the whole sound. The middle of a word says to which part it belongs."""
    start, end = times
    if is_word and start is not None and end is not None:
        shift = voice.shift_seconds((start + end) / 2)
        return [round(start + shift, 3), round(end + shift, 3)]
    return [
        None if start is None else round(start + voice.shift_seconds(start), 3),
        None if end is None else round(end + voice.shift_seconds(end, is_end=True), 3),
    ]
