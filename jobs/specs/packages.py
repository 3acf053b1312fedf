"""Optional packages that jobs may need on the workers' hosts: what each is for, and how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import InvalidSpec
from jobs.specs.inference import InferenceSpec, JobSpec
from jobs.specs.needs import Need, Needs, needs_of
from jobs.specs.parameters.media_tasks import SpeechRecognitionParameters
from jobs.specs.training import recipe_name


@dataclass(frozen=True, slots=True)
class Package:
    """A package that Stoker uses if it is installed."""

    module: str
    """The name that programs import."""
    distribution: str
    """The name that pip knows."""
    install: str
    """How to install it."""
    use: str
    """What it is for, beginning with `for` or `to`."""


AV = Package("av", "av", "pip install 'stoker[audio]'", "to read videos, and audio files other than plain WAV")
VLLM = Package("vllm", "vllm", "pip install 'stoker[vllm]'", "for `engine: vllm`")
SKLEARN = Package("sklearn", "scikit-learn", "pip install 'stoker[recipes]'", "for the images of the training recipes")
SILERO = Package("silero_vad", "silero-vad", "pip install 'stoker[vad]'", "for `vad` in speech recognition")
TORCHVISION = Package(
    "torchvision",
    "torchvision",
    "the build of torchvision that matches torch",
    "for mask-generation and some image models",
)
PACKAGES = (AV, VLLM, SKLEARN, SILERO, TORCHVISION)
TASK_PACKAGES = {"mask-generation": TORCHVISION, "video-classification": AV}
"""Task -> the package that its pipeline requires for every row."""


@dataclass(frozen=True, slots=True)
class PackageNeed:
    """A package that a job needs, and why."""

    package: Package
    param: str
    """The field of the spec that is the reason."""
    subject: str
    """What needs the package, for the message."""

    @property
    def part(self) -> Needs:
        """See `jobs.specs.needs.Need`."""
        return Needs(packages=frozenset({self.package.module}))

    def error(self, beside: str) -> InvalidSpec:
        """See `jobs.specs.needs.Need`."""
        return self.missing_package_error(f"no slot has{beside}")

    def missing_package_error(self, where: str) -> InvalidSpec:
        """Make the error for a missing package.

        Args:
            where: Who lacks it, such as `this worker lacks`.
        """
        return InvalidSpec(
            f"{self.param}: {self.subject} needs the package {self.package.distribution}, which {where}; install it on "
            f"the workers' hosts ({self.package.install}) and restart the workers",
            param=self.param,
        )


def task_need(task: str) -> PackageNeed | None:
    """What the pipeline of a task needs for every row, or None."""
    return PackageNeed(TASK_PACKAGES[task], "task", f"'{task}'") if task in TASK_PACKAGES else None


def needs_of_spec(spec: JobSpec) -> Iterator[Need]:
    """What a job needs of a slot according to its spec alone."""
    yield from needs_of(spec.needs)
    if isinstance(spec, InferenceSpec):
        need = task_need(spec.task)
        if need is not None:
            yield need
        if spec.engine == "vllm":
            yield PackageNeed(VLLM, "engine", "vllm")
        if isinstance(spec.task_parameters, SpeechRecognitionParameters) and spec.task_parameters.vad:
            yield PackageNeed(SILERO, "parameters.vad", "it")
    elif spec.module is not None and recipe_name(spec.module) is not None:
        yield PackageNeed(SKLEARN, "module", spec.module)
