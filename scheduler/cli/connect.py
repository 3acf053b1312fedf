"""Which settings a command has, and how it reaches the API that they name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.config.settings import ApiAddress, Settings
from jobs.messages import did_you_mean
from scheduler.client.http_client import StokerClient
from scheduler.embedded.api_address import find_key, find_url
from scheduler.embedded.data_dir import is_running
from scheduler.embedded.read_settings import read_settings

logger = logging.getLogger(__name__)


def folder_named(text: str) -> Path:
    """A folder's path; an empty one, of a shell's variable that is not set, would mean the working directory."""
    if not text:
        raise typer.BadParameter("it must not be empty")
    return Path(text)


DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=folder_named,
        metavar="<path>",
        help="Data directory [env: STOKER_DATA_DIR; default: ~/.stoker].",
    ),
]
Url = Annotated[str | None, typer.Option("--url", help="Where the API is [env: STOKER_URL].")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

_RESTART_SECONDS = 30.0
_BLIP_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stands before the command on the command line."""

    data_dir: Path | None = None
    url: str | None = None


def load_settings(context: typer.Context, **chosen: Any) -> Settings:
    """Settings from the command line, then the environment, then `stoker.toml`.

    Args:
        context: of the command, which knows the options that stood before it.
        chosen: options by their setting's name; None leaves it to the others.

    Raises:
        InvalidSpec: a setting is not valid; the message names it.
    """
    before = context.find_root().obj or Chosen()
    given: dict[str, Any] = {"data_dir": before.data_dir, "url": before.url}
    given |= {name: value for name, value in chosen.items() if value is not None}
    for name in Settings.unknown_variables():
        hint = did_you_mean(name, [f"STOKER_{field.upper()}" for field in Settings.model_fields])
        logger.warning("%s is no setting and does nothing%s", name, hint)
    return read_settings(given)


def open_client(api: ApiAddress, *, waits: bool = False) -> StokerClient:
    """A client of the API at this address.

    Args:
        api: The address and key that this command was given.
        waits: whether the command is about to wait for a job or to send much: then it sits out restarts of the API,
            once the API was there and has taken the key.
    """
    url = find_url(api)
    key = find_key(api, url)
    if not api.url and is_running(api.data_dir):
        patience_seconds = _RESTART_SECONDS  # the stack is starting its API again
    else:
        patience_seconds = _BLIP_SECONDS if api.url else 0.0
    if not waits:
        return StokerClient(url, key, retry_seconds=patience_seconds)
    with StokerClient(url, key, retry_seconds=patience_seconds) as probe:
        probe.jobs_page(limit=1)
    return StokerClient(url, key, retry_seconds=_RESTART_SECONDS)


def reach(context: typer.Context, url: str | None, data_dir: Path | None, *, waits: bool = False) -> StokerClient:
    """A client for a command that has just these options; `waits` as in `open_client`."""
    return open_client(load_settings(context, url=url, data_dir=data_dir), waits=waits)
