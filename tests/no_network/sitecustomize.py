# SPDX-License-Identifier: Apache-2.0
"""Refuses network connections but to this machine. Python runs this at its start where the folder is on PYTHONPATH.

Every test and every process that a test starts is under it (`tests/conftest.py`). Attempts are appended to the file
that `PEFOMED_TEST_NETWORK_LOG` names, so that a test also sees those whose error somebody swallowed.
"""

import os
import socket

REAL_CONNECT = socket.socket.connect
REAL_CONNECT_EX = socket.socket.connect_ex
REAL_GETADDRINFO = socket.getaddrinfo


def is_this_machine(host):
    """Whether `host`, a name or an address as `socket` takes it, needs no network."""
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    return name in {"", "::", "::1", "0.0.0.0", "localhost", socket.gethostname()} or name.startswith("127.")


def refuse(what):
    """Log the attempt and raise what a machine without a network raises."""
    log = os.environ.get("PEFOMED_TEST_NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{what}\n")
    raise OSError(f"tests have no network: refused {what}")


def guard(real):
    """Wrap a socket's connect method; addresses of Unix sockets are no tuples and pass."""

    def connect(self, address):
        if isinstance(address, tuple) and not is_this_machine(address[0]):
            refuse(f"connect {address[0]}:{address[1]}")
        return real(self, address)

    return connect


def getaddrinfo(host, *args, **kwargs):
    """As `socket.getaddrinfo`, for this machine only."""
    if not is_this_machine(host):
        refuse(f"getaddrinfo {host}")
    return REAL_GETADDRINFO(host, *args, **kwargs)


socket.socket.connect = guard(REAL_CONNECT)
socket.socket.connect_ex = guard(REAL_CONNECT_EX)
socket.getaddrinfo = getaddrinfo
