# SPDX-License-Identifier: Apache-2.0
"""Base models and adapters as they lie on disk: what training and inference both need to load them."""
