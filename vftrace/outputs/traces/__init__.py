# SPDX-License-Identifier: MIT
"""Traces for OpenTelemetry."""
