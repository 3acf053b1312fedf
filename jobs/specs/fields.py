"""Fields that the specs of both kinds of job share: durations, limits, priorities, and input rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from jobs.specs.bounds import MOST_FIELDS, Columns, Name, Paths

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNIT_SECONDS = (86400, 3600, 60, 1)
_LONGEST_SECONDS = 3650 * 86400
_LONGEST_DURATION_CHARACTERS = 50
LARGEST_INTEGER = 2**31 - 1
"""Largest integer of a spec, which fits into a database column and a tensor's size."""
MOST_ROW_ERRORS = 2**53
"""Largest value of `max_row_errors`."""
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)


def parse_duration(value: object) -> object:
    """Parse text such as `"90s"`, `"2h"` or `"1h30m"` into seconds; return other types for pydantic to validate."""
    if not isinstance(value, str):
        return value
    if len(value) > _LONGEST_DURATION_CHARACTERS:
        raise ValueError("must be a duration such as 90, '90s', '2h' or '1h30m'")
    if value.isdecimal():
        return int(value)
    match = _DURATION.fullmatch(value)
    if not value or match is None:
        raise ValueError("must be a duration such as 90, '90s', '2h' or '1h30m'")
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), _UNIT_SECONDS, strict=True))


_DURATION_FORMS = [
    {"type": "integer", "exclusiveMinimum": 0, "maximum": _LONGEST_SECONDS},
    {
        "type": "string",
        "pattern": r"^([0-9]+|([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?)$",
        "minLength": 1,
        "maxLength": _LONGEST_DURATION_CHARACTERS,
    },
]

Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    Field(gt=0, le=_LONGEST_SECONDS),
    WithJsonSchema({"anyOf": _DURATION_FORMS}, mode="validation"),
]
"""A positive number of seconds up to ten years, also written `2h` or `1h30m`."""


def parse_row_error_limit(value: object) -> Fraction | int:
    """Parse a limit, which is a number of rows (int) or a share of all rows (Fraction).

    Args:
        value: A whole number, or a text such as `5%`.

    Raises:
        ValueError: The value is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_ROW_ERRORS:
        return value
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    share = None if match is None else Fraction(match[1]) / 100
    if share is None or share > 1:
        raise ValueError("must be a whole number of rows from 0, or a share of all rows from '0%' to '100%'")
    return share


def _row_error_limit(value: object) -> object:
    parse_row_error_limit(value)
    return value


RowErrorLimit = Annotated[
    int | str,
    BeforeValidator(_row_error_limit),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MOST_ROW_ERRORS},
                {"type": "string", "pattern": r"^(100(\.0{1,6})?|[0-9]{1,2}(\.[0-9]{1,6})?)%$", "maxLength": 11},
            ]
        },
        mode="validation",
    ),
]
"""A number of rows, or a share of all rows such as `5%`."""


class Priority(StrEnum):
    """Order in which jobs get slots. A job that has waited for a day is treated as one priority higher."""

    HIGH = "high"  # served first; takes slots back from lower priorities after their current chunks
    NORMAL = "normal"  # the default
    LOW = "low"  # uses the slots that other jobs leave free

    @property
    def rank(self) -> int:
        """Position in the order of service, from 0, which is served first."""
        return list(Priority).index(self)


class Strict(BaseModel):
    """A part of a spec: frozen, and no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        # Checked first, since each unknown field would become a separate error.
        if isinstance(value, dict) and len(value) > MOST_FIELDS:
            raise ValueError(f"has {len(value)} fields, more than {MOST_FIELDS}")
        return value


JOB_PREFIX = "job:"
"""Prefix of a text in a spec that names another job by its id."""
MOST_DEPENDENCIES = 1000
"""The most entries of `after`."""


def _names_job(text: str) -> str:
    if re.fullmatch(rf"{JOB_PREFIX}[A-Za-z0-9_-]{{1,100}}", text) is None:
        raise ValueError("must be 'job:' and the id of a job, such as job:job_0193f2c1a7e8b1d2c3e4f5a60718")
    return text


class JobAfter(Strict):
    """A job that must end before this one begins."""

    job: Annotated[str, Field(max_length=104), AfterValidator(_names_job)]
    """The job, as `job:<id>`."""
    when: Literal["ok", "any"] = "ok"
    """`ok`: it must complete; if it ends otherwise, this job is cancelled. `any`: it must only end."""


def _job_after(value: object) -> object:
    return {"job": value} if isinstance(value, str) else value


After = Annotated[list[Annotated[JobAfter, BeforeValidator(_job_after)]], Field(max_length=MOST_DEPENDENCIES)]
"""The jobs that must end first; an entry may also be written as the text `job:<id>`."""


def parse_time(text: str) -> float:
    """Parse an ISO 8601 time with a time zone into Unix seconds.

    Raises:
        ValueError: The text is not such a time.
    """
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.timestamp()
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a time with a time zone, such as 2027-01-31T07:00:00Z or 2027-01-31T07:00:00+01:00")


def _in_utc(text: str) -> str:
    return datetime.fromtimestamp(parse_time(text), UTC).isoformat().replace("+00:00", "Z")


def _in_utc_by_default(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a time such as 2027-01-31T07:00; without a time zone it is in UTC") from error
    return _in_utc(text if found.tzinfo else found.replace(tzinfo=UTC).isoformat())


StartAt = Annotated[str, Field(max_length=50), AfterValidator(_in_utc)]
"""An ISO 8601 time with a time zone; kept in UTC."""
PromiseTime = Annotated[str, Field(max_length=50), AfterValidator(_in_utc_by_default)]
"""An ISO 8601 time, stored in UTC; without a time zone it is in UTC already."""

InputFormat = Literal["auto", "jsonl", "json", "csv", "text", "parquet", "dataset"]
"""The file format of the rows."""


class TextFields(Strict):
    """Options for reading text files, with the names that pandas uses."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the cells of a CSV file; by default detected from the header line."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """Whether quotes enclose cells of a CSV file (`minimal`) or are plain text (`none`). `auto` means `none` for `.tsv`
    and `.tab` files, and otherwise `minimal`."""
    quotechar: str = Field(default='"', min_length=1, max_length=1)
    """Character that encloses cells of a CSV file."""
    escapechar: str | None = Field(default=None, min_length=1, max_length=1)
    """Character that makes the next character of a CSV file plain text, such as a backslash; none by default."""
    encoding: str = Field(default="utf-8", min_length=1, max_length=40)
    """Python's name for the encoding of CSV, JSON and text files."""


class InputSpec(TextFields):
    """Where the rows come from and which columns the task reads."""

    path: Paths = Field(min_length=1)
    """A file, a glob, a list of these, `file:<id>` of an upload, a data set folder, or `hf://datasets/<name>`."""
    format: InputFormat = "auto"
    """`auto` derives the format from the file name. `json` is one array of objects or JSON lines, `text` has one row
    per line, and `dataset` is a Hugging Face data set (hub name or folder)."""
    columns: Columns = Field(default_factory=dict)
    """Input name of the task -> the user's column. An input that is not named here is read from the column of the same
    name. An optional input that is null here is not read."""
    key: Name | None = None
    """The column that identifies a row. It is copied into each result as text."""
    split: Name = "train"
    """The split of a data set to read."""
    config: Name | None = None
    """The configuration of a hub data set."""

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


def read_columns(names: Iterable[str], mapped: Mapping[str, str | None]) -> dict[str, str]:
    """Return input name of the task -> the user's column, for all inputs that are read.

    Args:
        names: Names of the task's required and optional inputs.
        mapped: The spec's `columns`; an input that is missing here is read from the column of the same name.
    """
    columns = {name: mapped.get(name, name) for name in names}
    return {name: column for name, column in columns.items() if column is not None}


def unread_input(names: Iterable[str], mapped: Mapping[str, str | None]) -> str | None:
    """Return the first required input that the spec maps to null, which means not to read it; None if there is none."""
    return next((name for name in names if name in mapped and mapped[name] is None), None)
