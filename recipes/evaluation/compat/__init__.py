# SPDX-License-Identifier: Apache-2.0
"""How other projects score, to the digit, one file a protocol: to read published numbers, not to be believed.

Each module has `QUIRKS`, what is odd about the protocol, and `numbers(predictions)`, which returns by name a
percentage (null where the protocol has no item to score) and the protocol's own number of items.
"""
