"""API keys: create, list, revoke, and the local stack's key file. Only hashes are stored."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update
from sqlmodel import col

from jobs import locks
from jobs.config.locations import Locations
from jobs.config.projects import OPERATOR, check_name
from jobs.data.atomic import replacing
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.tables import ApiKey
from jobs.errors import Conflict, NotFound

_PREFIX = "sk-stoker-"
_LOCAL_NAME = "local"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just created; the only time its secret is known."""

    id: str
    name: str
    project: str
    secret: str


def find_key(database: Database, secret: str) -> ApiKey | None:
    """Return the active key with this secret, or None."""
    digest = digest_of(secret)
    with database.read() as session:
        key = session.scalar(select(ApiKey).where(col(ApiKey.sha256) == digest))
    # The index finds the row by the hash, which reveals nothing; the deciding comparison takes constant time.
    if key is None or not hmac.compare_digest(key.sha256, digest) or key.revoked_at is not None:
        return None
    return key


# -- the verbs of `stoker keys` ------------------------------------------------------------------------------------


def create_key(database: Database, name: str, *, project: str = OPERATOR) -> NewKey:
    """Create a key. Only the return value contains its secret.

    Raises:
        InvalidSpec: The project name is invalid.
    """
    check_name(project)
    secret = _PREFIX + secrets.token_urlsafe(32)
    key_id = _register(database, name=name, project=project, secret=secret)
    return NewKey(key_id, name, project, secret)


def list_keys(database: Database) -> list[ApiKey]:
    """All keys, oldest first, including revoked ones."""
    with database.read() as session:
        return list(session.scalars(select(ApiKey).order_by(col(ApiKey.created_at), col(ApiKey.id))))


def revoke_key(database: Database, key_id: str) -> ApiKey:
    """Revoke a key. Each API process rejects requests with it within a second (`key_cache`).

    Raises:
        NotFound: There is no such key.
        Conflict: The key was already revoked.
    """
    with database.write() as session:
        key = session.get(ApiKey, key_id)
        if key is None:
            raise NotFound(f"there is no key '{key_id}'")
        live = update(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
        ended = session.execute(live.values(revoked_at=database.now()).returning(col(ApiKey.id)))
        if ended.one_or_none() is None:
            raise Conflict(f"key '{key_id}' was already revoked")
        session.refresh(key)
        return key


def _register(database: Database, *, name: str, project: str, secret: str) -> str:
    """Store a key's hash, once. Returns the key's id."""
    digest = digest_of(secret)
    with database.write() as session:
        row = {
            "id": new_id("key"),
            "name": name,
            "project": project,
            "sha256": digest,
            "created_at": session.time(),
        }
        session.execute(session.insert(ApiKey).values(**row).on_conflict_do_nothing(index_elements=["sha256"]))
        return session.scalars(select(col(ApiKey.id)).where(col(ApiKey.sha256) == digest)).one()


# -- the key of the embedded stack ---------------------------------------------------------------------------------


def ensure_local_key(locations: Locations, database: Database) -> str:
    """Return the embedded stack's key from its file, creating both if missing. Only the owner may read the file.

    A revoked key is replaced by a new one.

    Returns:
        The secret.
    """
    path = locations.local_key_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only one process, and one thread, at a time makes this folder's key.
    with locks.held(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)):
        secret = _read_key_file(path) or _write_key_file(path)
        _register(database, name=_LOCAL_NAME, project=OPERATOR, secret=secret)
        if find_key(database, secret) is None:
            secret = _write_key_file(path)
            _register(database, name=_LOCAL_NAME, project=OPERATOR, secret=secret)
        return secret


def _read_key_file(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _write_key_file(path: Path) -> str:
    """Write a new key atomically. Returns it."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    with replacing(path, mode=0o600) as file:
        file.write(f"{secret}\n".encode())
    return secret


def digest_of(secret: str) -> str:
    """The hash of a secret, which is what the database stores."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
