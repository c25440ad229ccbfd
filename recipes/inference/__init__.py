# SPDX-License-Identifier: Apache-2.0
"""Inference: answers of a local model or of an API model, one prediction a sample."""
