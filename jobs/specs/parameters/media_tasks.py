"""Parameters of the tasks that read images, video and audio. Absent ones get the defaults of transformers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.specs.parameters.task_parameters import LabelParameters, OpenParameters, TaskParameters
from jobs.specs.settable import Expected
from jobs.specs.value_types import (
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
    """Parameters of the tasks that classify images, films and sounds."""

    top_k: Count | None = None
    """Number of best labels in each output; 5 when absent."""
    function_to_apply: ScoreFunction | None = None
    """What makes scores of the logits; as the model's kind asks for when absent."""


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
    """Frames that are taken of each film; as many as the model was trained with when absent."""
    frame_sampling_rate: Count | None = None
    """Every how manieth frame is taken; 1 when absent."""


class ZeroShotImageClassificationParameters(LabelParameters):
    """Parameters of `zero-shot-image-classification`."""

    TASK: ClassVar[str] = "zero-shot-image-classification"

    hypothesis_template: Hypothesis | None = None
    """Sentence that is made of each label; `This is a photo of {}.` when absent."""


class ZeroShotAudioClassificationParameters(LabelParameters):
    """Parameters of `zero-shot-audio-classification`."""

    TASK: ClassVar[str] = "zero-shot-audio-classification"

    hypothesis_template: Hypothesis | None = None
    """Sentence that is made of each label; `This is a sound of {}.` when absent."""


class ZeroShotObjectDetectionParameters(LabelParameters):
    """Parameters of `zero-shot-object-detection`."""

    TASK: ClassVar[str] = "zero-shot-object-detection"

    threshold: Number | None = None
    """Lowest score of an object in the output; 0.1 when absent."""
    top_k: Count | None = None
    """Most objects in each output; all when absent."""


class ObjectDetectionParameters(TaskParameters):
    """Parameters of `object-detection`."""

    TASK: ClassVar[str] = "object-detection"

    threshold: Number | None = None
    """Lowest score of an object in the output; 0.5 when absent."""


class ImageSegmentationParameters(TaskParameters):
    """Parameters of `image-segmentation`."""

    TASK: ClassVar[str] = "image-segmentation"

    subtask: Subtask | None = None
    """Kind of segmentation; the first that the model can do when absent."""
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
    """Points that are computed at once; null for all."""
    points_per_crop: CropPoints | None = None
    """Points along each side of a crop; 32 when absent."""
    crops_n_layers: CropLayers | None = None
    """Layers of ever smaller crops that are searched too; 0 when absent."""
    crop_overlap_ratio: Number | None = None
    """Share of the image's side by which crops overlap."""
    crop_n_points_downscale_factor: Count | None = None
    """Factor by which each layer's crops have fewer points along a side; 1 when absent."""
    pred_iou_thresh: Number | None = None
    """Lowest quality, as the model predicts it, of a mask in the output; 0.88 when absent."""
    stability_score_thresh: Number | None = None
    """Lowest stability under changes of the mask threshold of a mask in the output; 0.95 when absent."""
    stability_score_offset: Number | None = None
    """Change of the mask threshold by which stability is measured; 1 when absent."""
    mask_threshold: Number | None = None
    """Threshold that makes a mask of logits binary; 0 when absent."""
    max_hole_area: Number | None = None
    """Area in pixels below which holes in a mask are filled."""
    max_sprinkle_area: Number | None = None
    """Area in pixels below which disconnected parts of a mask are dropped."""
    crops_nms_thresh: Number | None = None
    """Overlap of boxes above which only the best of several masks is kept; 0.7 when absent."""
    output_rle_mask: Flag | None = None
    """Whether the output has each mask run-length encoded as well."""
    output_bboxes_mask: Flag | None = None
    """Whether the output has each mask's box as well."""


class DocumentQuestionAnsweringParameters(TaskParameters):
    """Parameters of `document-question-answering`."""

    TASK: ClassVar[str] = "document-question-answering"

    top_k: Count | None = None
    """Answers in each output; 1 when absent."""
    max_answer_len: Count | None = None
    """Longest answer, in words; 15 when absent."""
    max_seq_len: Count | None = None
    """Tokens of question and document together in one window."""
    max_question_len: Count | None = None
    """Tokens that a question is cut to."""
    doc_stride: Count | None = None
    """Tokens that the windows of a long document share."""
    handle_impossible_answer: Flag | None = None
    """Whether an empty answer is possible; false when absent."""
    padding: Padding | None = None
    """How the tokenizer pads; the pipeline's own way when absent."""
    lang: Text | None = None
    """Language that Tesseract reads."""


class ImageFeatureExtractionParameters(OpenParameters):
    """Parameters of `image-feature-extraction`, beside those of its pipeline."""

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
    """Parameters of `text-to-audio`, beside those of its pipeline and model."""

    TASK: ClassVar[str] = "text-to-audio"

    forward_params: NamedValues | None = None
    """Further arguments of the model's forward pass."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""


class SpeechRecognitionParameters(OpenParameters):
    """Parameters of `automatic-speech-recognition`, beside those of its pipeline and model."""

    TASK: ClassVar[str] = "automatic-speech-recognition"

    chunk_length_s: NumberFromZero | None = None
    """Seconds of the windows that a sound is cut into; 0, as when absent, cuts nothing."""
    return_timestamps: Timestamps | None = None
    """Whether the output has the times of segments (true), words or characters."""
    return_language: Flag | None = None
    """Whether the output has the language that was heard."""
    language: Text | None = None
    """Language of the sounds; models of several languages find it out when absent."""
    task: Text | None = None
    """`transcribe` or `translate`, for models that do both."""
    generate_kwargs: NamedValues | None = None
    """Further arguments of the model's `generate`."""
