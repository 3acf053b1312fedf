"""Read a command's settings and options, and connect to the API that they name."""

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
    """Parse a folder's path. An empty one (from an unset shell variable) would mean the working directory."""
    if not text:
        raise typer.BadParameter("must not be empty")
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
Url = Annotated[str | None, typer.Option("--url", help="URL of the API [env: STOKER_URL].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]

_RESTART_SECONDS = 30.0
_SHORT_OUTAGE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Options given before the command on the command line."""

    data_dir: Path | None = None
    url: str | None = None


def load_settings(context: typer.Context, **options: Any) -> Settings:
    """Settings from the command line, then the environment, then `stoker.toml`.

    Args:
        context: Context of the command, which holds the options given before it.
        options: Setting name -> option of the command; None means not given.

    Raises:
        InvalidSpec: A setting is not valid; the message names it.
    """
    root = context.find_root().obj or GlobalOptions()
    given: dict[str, Any] = {"data_dir": root.data_dir, "url": root.url}
    given |= {name: value for name, value in options.items() if value is not None}
    for name in Settings.unknown_variables():
        hint = did_you_mean(name, [f"STOKER_{field.upper()}" for field in Settings.model_fields])
        logger.warning("%s is not a setting of Stoker and is ignored%s", name, hint)
    return read_settings(given)


def open_client(api: ApiAddress, *, waits: bool = False) -> StokerClient:
    """Open a client of the API at an address.

    Args:
        api: Address and key from the settings.
        waits: Whether the command waits for a job or sends much data. If so, the client retries during restarts of
            the API, provided that the API has responded and accepted the key once.
    """
    url = find_url(api)
    key = find_key(api, url)
    if not api.url and is_running(api.data_dir):
        retry_seconds = _RESTART_SECONDS  # the stack restarts its API
    else:
        retry_seconds = _SHORT_OUTAGE_SECONDS if api.url else 0.0
    if not waits:
        return StokerClient(url, key, retry_seconds=retry_seconds)
    with StokerClient(url, key, retry_seconds=retry_seconds) as probe:
        probe.jobs_page(limit=1)
    return StokerClient(url, key, retry_seconds=_RESTART_SECONDS)


def connect(context: typer.Context, url: str | None, data_dir: Path | None, *, waits: bool = False) -> StokerClient:
    """Open a client for a command that has only these options; `waits` is as in `open_client`."""
    return open_client(load_settings(context, url=url, data_dir=data_dir), waits=waits)
