"""Addresses that Stoker may call on behalf of a user: public ones, and those that the operator lists."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator

from jobs.errors import ServiceUnavailable, UserError

Address = IPv4Address | IPv6Address

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*")

# From IANA's registries of special-purpose addresses. Listed here because the result of Python's `is_global` differs
# between patch releases.
_RESERVED_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # registered as public, but within Azure a service of the host
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_UNICAST_6 = IPv6Network("2000::/3")
"""All addresses assigned so far; it excludes loopback, mapped IPv4, NAT64, unique local, link-local and multicast."""
_RESERVED_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, which wraps IPv4
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which wraps IPv4
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Whether an address is globally reachable on the internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _RESERVED_4)
    return address in _UNICAST_6 and not any(address in network for network in _RESERVED_6)


def find_addresses(host: str, port: int, *, private_hosts: Sequence[str]) -> list[Address]:
    """Resolve a host name to addresses, all of which may be called.

    Connect to these addresses and never to the name, since a second lookup may give another address. Only the system's
    resolver limits the duration of the lookup.

    Args:
        host: A name in ASCII, or an address.
        port: The port to be called.
        private_hosts: The setting `webhook_private_hosts`.

    Raises:
        UserError: The host does not exist, or one of its addresses may not be called. The message does not reveal
            which address.
        ServiceUnavailable: The lookup failed temporarily.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise ServiceUnavailable(f"the host '{host}' cannot be resolved now") from error
        raise UserError(f"the host '{host}' does not exist") from error
    except UnicodeError as error:  # a part of the name is empty or too long
        raise UserError(f"the host '{host}' does not exist") from error
    addresses = [ip_address(entry[4][0]) for entry in found]
    if not all(_may_call(host, address, private_hosts) for address in addresses):
        raise UserError(f"the host '{host}' has an address that is not public (setting webhook_private_hosts)")
    return list(dict.fromkeys(addresses))


def _may_call(host: str, address: Address, private_hosts: Sequence[str]) -> bool:
    if is_public(address):
        return True
    for listed in private_hosts:
        network = _as_network(listed)
        if address in network if network is not None else host.lower().rstrip(".") == listed:
            return True
    return False


def _checked(listed: str) -> str:
    listed = listed.lower().rstrip(".")
    if _as_network(listed) is None and not _NAME.fullmatch(listed):
        raise ValueError(f"'{listed}' is not a host name, an address or a network such as 10.0.0.0/8")
    return listed


def _as_network(listed: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(listed)
    except ValueError:
        return None


PrivateHost = Annotated[str, AfterValidator(_checked)]
"""A host name, an address or a network that may be called although it is not public."""
