# SPDX-License-Identifier: Apache-2.0
"""Demo: the web page and the blinded rating page, for a local run and a Space alike."""
