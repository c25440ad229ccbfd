# SPDX-License-Identifier: Apache-2.0
"""Hub: export, verify and publish adapters with their model cards."""
