# SPDX-License-Identifier: MIT
"""The mailbox between a network card's driver and its virtual functions: what a driver is, and decoding.

Pure: events in, values out. Each driver is one file, listed in `drivers`.
"""
