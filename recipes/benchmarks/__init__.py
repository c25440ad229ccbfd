# SPDX-License-Identifier: Apache-2.0
"""What is measured, each by one command that writes the result file it is quoted from."""
