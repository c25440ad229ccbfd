# SPDX-License-Identifier: Apache-2.0
"""Data: one reader a dataset, images, instructions, mixtures, checks and phantoms."""
