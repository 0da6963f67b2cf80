"""Which ``Host``, ``Origin`` and ``Sec-Fetch-Site`` headers are accepted."""

from __future__ import annotations

import re
from collections.abc import Iterable

LOOPBACK = ('127.0.0.1', 'localhost', '::1')
LOCAL_HOSTS = frozenset({'127.0.0.1', 'localhost', '[::1]'})
_HOST = re.compile(r'([a-z0-9](?:[a-z0-9.-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?', re.ASCII | re.IGNORECASE)


class Access:
    """Refuses requests that another site makes through a visitor's browser.

    Args:
        hosts: Names, without ports, that the ``Host`` header may have (IPv6 in brackets); None accepts every
            well-formed one. On a loopback address the names of this machine keep out other names that resolve to it
            (DNS rebinding).
    """

    def __init__(self, hosts: Iterable[str] | None) -> None:
        self.hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    def refuse(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """(status, sentence) if the request is not accepted, else None; names in ``headers`` are in lower case."""
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name, []).append(value.decode('latin-1').lower())
        host = found.get(b'host', [])
        named = _HOST.fullmatch(host[0]) if len(host) == 1 else None
        if named is None or (self.hosts is not None and named[1] not in self.hosts):
            return 421, 'the Host header names no host of this server; use its own address, or add it to --allow-hosts'
        origins = found.get(b'origin', [])
        if origins and origins not in ([f'http://{host[0]}'], [f'https://{host[0]}']):
            return 403, 'the Origin header is not that of this server; other sites may not use it'
        sites = found.get(b'sec-fetch-site', ['none'])
        if method not in ('GET', 'HEAD') and sites not in (['same-origin'], ['none']):
            return 403, 'the request comes from another site; other sites may not use this server'
        return None
