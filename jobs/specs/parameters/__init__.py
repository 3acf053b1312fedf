"""The parameters of each inference task: one pydantic model per task, with all defaults.

`text_tasks`, `generation` and `media_tasks` contain the models, `task_parameters` their base class and the names that
no job may set. `read_parameters` validates a user's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.specs.parameters.generation import (
    AnyToAnyParameters,
    ImageTextToTextParameters,
    TextGenerationParameters,
)
from jobs.specs.parameters.media_tasks import (
    AudioClassificationParameters,
    DepthEstimationParameters,
    DocumentQuestionAnsweringParameters,
    ImageClassificationParameters,
    ImageFeatureExtractionParameters,
    ImageSegmentationParameters,
    KeypointMatchingParameters,
    MaskGenerationParameters,
    ObjectDetectionParameters,
    SpeechRecognitionParameters,
    TextToAudioParameters,
    VideoClassificationParameters,
    ZeroShotAudioClassificationParameters,
    ZeroShotImageClassificationParameters,
    ZeroShotObjectDetectionParameters,
)
from jobs.specs.parameters.task_parameters import TaskParameters
from jobs.specs.parameters.text_tasks import (
    DecisionParameters,
    EmbeddingsParameters,
    FeatureExtractionParameters,
    FillMaskParameters,
    TableQuestionAnsweringParameters,
    TextClassificationParameters,
    TokenClassificationParameters,
    ZeroShotClassificationParameters,
)

PARAMETERS: Mapping[str, type[TaskParameters]] = {
    model.TASK: model
    for model in (
        EmbeddingsParameters,
        TextClassificationParameters,
        TokenClassificationParameters,
        FillMaskParameters,
        FeatureExtractionParameters,
        TextGenerationParameters,
        ZeroShotClassificationParameters,
        TableQuestionAnsweringParameters,
        DocumentQuestionAnsweringParameters,
        TextToAudioParameters,
        AudioClassificationParameters,
        SpeechRecognitionParameters,
        ZeroShotAudioClassificationParameters,
        ImageClassificationParameters,
        ImageFeatureExtractionParameters,
        ImageSegmentationParameters,
        ImageTextToTextParameters,
        ZeroShotImageClassificationParameters,
        ObjectDetectionParameters,
        ZeroShotObjectDetectionParameters,
        DepthEstimationParameters,
        VideoClassificationParameters,
        MaskGenerationParameters,
        KeypointMatchingParameters,
        AnyToAnyParameters,
        DecisionParameters,
    )
}
"""Name of a task -> the model of its parameters."""


def read_parameters(task: str, given: Mapping[str, Any]) -> TaskParameters:
    """Check the parameters of a task and return them as its model.

    Raises:
        InvalidSpec: See `TaskParameters.read`.
    """
    return PARAMETERS[task].read(given)
