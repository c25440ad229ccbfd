# SPDX-License-Identifier: Apache-2.0
"""Judge models: rubrics, strict reading of replies, a gate that a judge must pass, and a watch on its drift."""
