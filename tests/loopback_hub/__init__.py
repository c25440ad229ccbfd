# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine that the real huggingface_hub client talks to: persistent, with faults to order and a log."""

from .server import LoopbackHub, Request, loopback_hub
from .store import Repository, Store

__all__ = ["LoopbackHub", "Repository", "Request", "Store", "loopback_hub"]
