# SPDX-License-Identifier: Apache-2.0
"""Evaluation: predictions of any model to scores, intervals, tables and plots, without torch."""
