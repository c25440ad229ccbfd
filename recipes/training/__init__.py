# SPDX-License-Identifier: Apache-2.0
"""Training: two stages with TRL, from base model and samples to an adapter."""
