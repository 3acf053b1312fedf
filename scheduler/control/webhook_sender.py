"""Signs and sends the webhook deliveries that are due, to public addresses only, each attempt with a deadline.

Signatures follow https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

import httpx

from jobs.config.addresses import Address, find_addresses
from jobs.config.times import WebhookTimes
from jobs.db.database import Database
from jobs.errors import Conflict, MachineError, StokerError, UserError
from jobs.ledger.records import webhooks
from jobs.ledger.records.webhooks import SECRET_PREFIX, Sending
from jobs.retries import RetryPolicy
from scheduler.admin.version import version

logger = logging.getLogger(__name__)

LONGEST_URL = 2000
"""The most characters of a webhook's URL."""
_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
_CLAIM_TIMEOUTS = 3.0  # life of a claim in timeouts: the name is looked up before the attempt's timeout begins
_MOST_ADDRESSES = 3  # the number of a host's addresses that are tried
_GONE = 410  # the status by which a receiver says that it wants no more deliveries


class Undelivered(MachineError):
    """A try of a delivery failed."""

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        """
        Args:
            message: One clear sentence for the delivery log.
            status_code: HTTP status of the receiver's response; None without a response.
        """
        super().__init__(message)
        self.status_code = status_code
        self.retryable = status_code != _GONE


def check_url(url: str, times: WebhookTimes) -> None:
    """Reject a webhook's URL that deliveries could not be sent to.

    Raises:
        UserError: The URL is not a plain http or https URL, or requests to its host are not allowed.
        ServiceUnavailable: The host cannot be looked up now.
    """
    try:
        parsed = _parse(url)
        find_addresses(_host(parsed), _port(parsed), private_hosts=times.webhook_private_hosts)
    except UserError as error:
        raise UserError(f"url: {error.message}", param="url") from error


def deliver(
    db: Database, times: WebhookTimes, webhook_id: str, *, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Send a webhook's due deliveries, one after the other. A response that rejects one does not stop the others.

    No delivery begins once the timeout of one has passed, so that slow receivers take turns with the others. If this is
    killed, its claim expires, and the delivery is sent again under the same id.

    Args:
        is_wanted: Called before each delivery; once it returns False, the rest is left for the next leader.

    Raises:
        Undelivered: The receiver could not be reached, which is recorded; wait before the next attempt.
        ServiceUnavailable: The database cannot be reached.
    """
    policy = times.webhook_policy
    claim_seconds = _CLAIM_TIMEOUTS * times.webhook_timeout_seconds
    end_at = time.monotonic() + times.webhook_timeout_seconds
    while is_wanted() and time.monotonic() < end_at:
        sending = webhooks.claim(db, webhook_id, max_attempts=policy.max_attempts, claim_seconds=claim_seconds)
        if sending is None:
            return
        try:
            _send_and_record(db, times, sending, policy)
        except Conflict as error:
            logger.info("%s", error)


def _send_and_record(db: Database, times: WebhookTimes, sending: Sending, policy: RetryPolicy) -> None:
    try:
        status_code = send(sending, times)
    except Undelivered as error:
        webhooks.record_failed(db, sending, error, policy, status_code=error.status_code)
        if error.status_code is None:
            raise
        logger.info("%s, try %d: %s", sending.delivery_id, sending.attempt, error)
    else:
        webhooks.record_delivered(db, sending, status_code)


def send(sending: Sending, times: WebhookTimes) -> int:
    """Make one attempt to send a delivery.

    Returns:
        The 2xx status of the response. The response's body is not read.

    Raises:
        Undelivered: The response had another status, redirects included, or did not come in time, or requests to the
            host are not allowed.
    """
    timeout_seconds = times.webhook_timeout_seconds
    try:
        url = _parse(sending.url)
        addresses = find_addresses(_host(url), _port(url), private_hosts=times.webhook_private_hosts)
    except StokerError as error:
        raise Undelivered(error.message) from error
    body = sending.body.encode()
    headers = {"Content-Type": "application/json", "User-Agent": f"stoker/{version()}"} | _signed(sending, body)
    try:
        status_code = asyncio.run(_post(url, addresses, headers, body, timeout_seconds=timeout_seconds))
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Undelivered(f"no response in {timeout_seconds:g} s") from error
    except httpx.HTTPError as error:
        raise Undelivered(f"no response: {_reason(error)}") from error
    if not 200 <= status_code < 300:
        raise Undelivered(f"HTTP status {status_code}", status_code=status_code)
    return status_code


# -- what is sent --------------------------------------------------------------------------------------------------


def _signed(sending: Sending, body: bytes) -> dict[str, str]:
    """The headers that identify the delivery and prove its sender."""
    timestamp = str(int(sending.at))
    key = base64.b64decode(sending.secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((sending.delivery_id.encode(), timestamp.encode(), body))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": sending.delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }


async def _post(
    url: httpx.URL, addresses: Sequence[Address], headers: Mapping[str, str], body: bytes, *, timeout_seconds: float
) -> int:
    """POST to the first of these addresses that accepts a connection, as if the URL's name had resolved to it.

    This is asynchronous only for the sake of its deadline, because httpx's timeouts restart with each byte received.
    Each call has its own client: a connection verified for one name must not be reused for another name at the same
    address.
    """
    tried = addresses[:_MOST_ADDRESSES]
    timeout = httpx.Timeout(timeout_seconds, connect=timeout_seconds / len(tried))
    extensions = {"sni_hostname": _host(url)} if _is_name(url) else {}  # the name that the certificate must be for
    async with (
        asyncio.timeout(timeout_seconds),
        httpx.AsyncClient(verify=_tls(), timeout=timeout, trust_env=False, follow_redirects=False) as client,
    ):
        failure = httpx.TransportError("the host has no address")
        for address in tried:
            request = client.build_request(
                "POST",
                url.copy_with(host=str(address)),
                headers={"Host": url.netloc.decode("ascii"), **headers},
                content=body,
                extensions=extensions,
            )
            try:
                response = await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
            else:
                await response.aclose()
                return response.status_code
        raise failure


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The TLS settings with the default certificate authorities, or those of `SSL_CERT_FILE`."""
    return httpx.create_ssl_context()


def _reason(error: Exception) -> str:
    """The root cause of a failed connection, in words that contain nothing that the receiver sent."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    match cause:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid: {cause.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {cause.reason or 'the connection was lost'}"
        case OSError() if cause.errno:
            return os.strerror(cause.errno).lower()
    return (
        "the receiver does not speak HTTP"
        if isinstance(error, httpx.RemoteProtocolError)
        else "the connection was lost"
    )


# -- where to ------------------------------------------------------------------------------------------------------


def _parse(url: str) -> httpx.URL:
    if len(url) > LONGEST_URL:
        raise UserError(f"must have at most {LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"must be a URL: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.raw_host:
        raise UserError("must begin with http:// or https:// and a host")
    if not 0 < _port(parsed) < 2**16:
        raise UserError("must have a port between 1 and 65535, or none")
    if parsed.userinfo:
        raise UserError("must not contain a user or a password; receivers can check the signature instead")
    return parsed


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return _PORTS[url.scheme] if url.port is None else url.port


def _is_name(url: httpx.URL) -> bool:
    try:
        ip_address(_host(url))
    except ValueError:
        return True
    return False
