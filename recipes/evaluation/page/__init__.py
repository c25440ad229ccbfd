# SPDX-License-Identifier: Apache-2.0
"""The report: one page that holds a run's results, what is wrong with them, and how to get them again."""
