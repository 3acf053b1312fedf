"""Parameters of the tasks that read images, video and audio. If absent, they have the defaults of transformers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.specs.parameters.task_parameters import LabelParameters, OpenParameters, TaskParameters, refused
from jobs.specs.training_options.settable import Expected
from jobs.specs.training_options.value_types import (
    Count,
    Flag,
    Hypothesis,
    NamedValues,
    Number,
    NumberFromZero,
    Padding,
    ScoreFunction,
    Text,
)

NumFrames = Annotated[int, Field(ge=1, le=1024), Expected("a whole number from 1 to 1024")]
CropPoints = Annotated[int, Field(ge=1, le=256), Expected("a whole number from 1 to 256")]
CropLayers = Annotated[int, Field(ge=0, le=6), Expected("a whole number from 0 to 6")]
Subtask = Annotated[Literal["semantic", "instance", "panoptic"], Expected("one of semantic, instance, panoptic")]
Timestamps = Annotated[bool | Literal["char", "word"], Expected("true, false, 'char' or 'word'")]


class ClassifierParameters(TaskParameters):
    """Parameters of the tasks that classify images, videos and audio."""

    top_k: Count | None = None
    """Number of best labels in each output; 5 when absent."""
    function_to_apply: ScoreFunction | None = None
    """Function that turns logits into scores; by default the one for the model's type of problem."""


class ImageClassificationParameters(ClassifierParameters):
    """Parameters of `image-classification`."""

    TASK: ClassVar[str] = "image-classification"


class AudioClassificationParameters(ClassifierParameters):
    """Parameters of `audio-classification`."""

    TASK: ClassVar[str] = "audio-classification"


class VideoClassificationParameters(ClassifierParameters):
    """Parameters of `video-classification`."""

    TASK: ClassVar[str] = "video-classification"

    num_frames: NumFrames | None = None
    """Number of frames to use of each video; by default the number that the model was trained with."""
    frame_sampling_rate: Count | None = None
    """Distance between two used frames; with 1, the default, they are consecutive."""


class ZeroShotImageClassificationParameters(LabelParameters):
    """Parameters of `zero-shot-image-classification`."""

    TASK: ClassVar[str] = "zero-shot-image-classification"

    hypothesis_template: Hypothesis | None = None
    """Sentence into which each label is inserted; `This is a photo of {}.` when absent."""


class ZeroShotAudioClassificationParameters(LabelParameters):
    """Parameters of `zero-shot-audio-classification`."""

    TASK: ClassVar[str] = "zero-shot-audio-classification"

    hypothesis_template: Hypothesis | None = None
    """Sentence into which each label is inserted; `This is a sound of {}.` when absent."""


class ZeroShotObjectDetectionParameters(LabelParameters):
    """Parameters of `zero-shot-object-detection`."""

    TASK: ClassVar[str] = "zero-shot-object-detection"

    threshold: Number | None = None
    """Lowest score of an object in the output; 0.1 when absent."""
    top_k: Count | None = None
    """Maximum number of objects in each output; all when absent."""


class ObjectDetectionParameters(TaskParameters):
    """Parameters of `object-detection`."""

    TASK: ClassVar[str] = "object-detection"

    threshold: Number | None = None
    """Lowest score of an object in the output; 0.5 when absent."""


class ImageSegmentationParameters(TaskParameters):
    """Parameters of `image-segmentation`."""

    TASK: ClassVar[str] = "image-segmentation"

    subtask: Subtask | None = None
    """Kind of segmentation; by default the first kind that the model supports."""
    threshold: Number | None = None
    """Lowest probability of a mask in the output; 0.9 when absent."""
    mask_threshold: Number | None = None
    """Threshold that makes a mask of probabilities binary; 0.5 when absent."""
    overlap_mask_area_threshold: Number | None = None
    """Share of a mask's area below which small disconnected parts are dropped; 0.5 when absent."""


class DepthEstimationParameters(TaskParameters):
    """`depth-estimation` has no parameters."""

    TASK: ClassVar[str] = "depth-estimation"


class KeypointMatchingParameters(TaskParameters):
    """Parameters of `keypoint-matching`."""

    TASK: ClassVar[str] = "keypoint-matching"

    threshold: Number | None = None
    """Lowest score of a match in the output; 0 when absent."""


class MaskGenerationParameters(TaskParameters):
    """Parameters of `mask-generation`."""

    TASK: ClassVar[str] = "mask-generation"
    NULLS: ClassVar[frozenset[str]] = frozenset({"points_per_batch"})

    points_per_batch: Annotated[Count, Expected("a whole number from 1, or null for all points at once")] | None = 64
    """Number of points that are computed at once; null for all."""
    points_per_crop: CropPoints | None = None
    """Number of points along each side of a crop; 32 when absent."""
    crops_n_layers: CropLayers | None = None
    """Number of layers of smaller and smaller crops that are also searched; 0 when absent."""
    crop_overlap_ratio: Number | None = None
    """Overlap of neighboring crops, as a share of the image's side."""
    crop_n_points_downscale_factor: Count | None = None
    """Factor by which the number of points along a side falls with each layer of crops; 1 when absent."""
    pred_iou_thresh: Number | None = None
    """Lowest quality of a mask in the output, as predicted by the model; 0.88 when absent."""
    stability_score_thresh: Number | None = None
    """Lowest stability of a mask in the output when the mask threshold changes; 0.95 when absent."""
    stability_score_offset: Number | None = None
    """Change of the mask threshold by which stability is measured; 1 when absent."""
    mask_threshold: Number | None = None
    """Threshold that makes a mask of logits binary; 0 when absent."""
    max_hole_area: Number | None = None
    """Area in pixels below which holes in a mask are filled."""
    max_sprinkle_area: Number | None = None
    """Area in pixels below which disconnected parts of a mask are dropped."""
    crops_nms_thresh: Number | None = None
    """Overlap of boxes above which only the best mask is kept; 0.7 when absent."""
    output_rle_mask: Flag | None = None
    """Whether the output also has each mask in run-length encoding."""
    output_bboxes_mask: Flag | None = None
    """Whether the output also has the bounding box of each mask."""


class DocumentQuestionAnsweringParameters(TaskParameters):
    """Parameters of `document-question-answering`."""

    TASK: ClassVar[str] = "document-question-answering"

    top_k: Count | None = None
    """Number of answers in each output; 1 when absent."""
    max_answer_len: Count | None = None
    """Maximum length of an answer in words; 15 when absent."""
    max_seq_len: Count | None = None
    """Maximum number of tokens in one window, for the question and the document together."""
    doc_stride: Count | None = None
    """Number of tokens that neighboring windows of a long document share."""
    handle_impossible_answer: Flag | None = None
    """Whether an empty answer is possible; false when absent."""
    padding: Padding | None = None
    """How the tokenizer pads; the pipeline's default when absent."""
    lang: Text | None = None
    """Language of the documents, for Tesseract."""


class ImageFeatureExtractionParameters(OpenParameters):
    """Parameters of `image-feature-extraction`. The pipeline accepts more."""

    TASK: ClassVar[str] = "image-feature-extraction"

    pool: Flag | None = None
    """Whether the output is the model's pooled vector instead of one vector for each patch; false when absent."""
    image_processor_kwargs: NamedValues | None = None
    """Further arguments of the image processor."""

    @model_validator(mode="after")
    def _go_together(self) -> ImageFeatureExtractionParameters:
        self.refuse_inner("image_processor_kwargs", frozenset({"return_tensors", "images"}))
        return self


class TextToAudioParameters(OpenParameters):
    """Parameters of `text-to-audio`. The pipeline and the model accept more."""

    TASK: ClassVar[str] = "text-to-audio"

    forward_params: NamedValues | None = None
    """Further arguments of the model's forward pass."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""


class SpeechRecognitionParameters(OpenParameters):
    """Parameters of `automatic-speech-recognition`. The pipeline and the model accept more."""

    TASK: ClassVar[str] = "automatic-speech-recognition"
    OWN: ClassVar[frozenset[str]] = frozenset({"return_info", "return_segments", "vad"})

    chunk_length_s: NumberFromZero | None = None
    """Length in seconds of the windows that a recording is cut into; with 0, the default, it is not cut."""
    return_timestamps: Timestamps | None = None
    """Whether the output has the times of segments (true), words or characters."""
    return_segments: Flag | None = None
    """Whether the output also has `segments`, with `return_timestamps: word`; only Whisper finds both."""
    return_language: Flag | None = None
    """Whether the output has the detected language."""
    return_info: Flag | None = None
    """Whether the output also has `duration`, in seconds, and `language`, null if the model does not report it."""
    vad: Flag | None = None
    """Whether long pauses are left out of the recordings; needs the extra `vad`, and changes what Whisper writes."""
    language: Text | None = None
    """Language of the recordings; by default multilingual models detect it."""
    task: Text | None = None
    """`transcribe` or `translate`, for models that do both."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""

    @model_validator(mode="after")
    def _go_together(self) -> SpeechRecognitionParameters:
        if self.return_segments and self.return_timestamps != "word":
            raise refused("return_segments", "requires `return_timestamps: word`; segments alone are `true`")
        return self
