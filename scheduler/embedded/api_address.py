"""Find the API's URL and the key for it: from the settings, or from the files of a stack on this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

from jobs.config.settings import ApiAddress
from scheduler.embedded.data_dir import running_url

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def find_url(api: ApiAddress) -> str:
    """URL of the API: from the settings, else that of the data directory's stack, else the default."""
    if api.url:
        return api.url
    if running := running_url(api.data_dir):
        return running
    try:
        return api.url_path.read_text().strip()
    except OSError:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(api.host, api.host)
        return f"http://{host}:{api.port}"


def find_key(api: ApiAddress, url: str) -> str:
    """Key to send: from the settings, else the local stack's key, which is sent to this machine only. May be empty."""
    if key := api.api_key.get_secret_value():
        return key
    if api.url and urlsplit(url).hostname not in _LOOPBACK:
        return ""
    try:
        return api.local_key_path.read_text().strip()
    except OSError:
        return ""
