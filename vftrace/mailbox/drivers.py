# SPDX-License-Identifier: MIT
"""The drivers whose mailbox vftrace knows. A new driver's file is listed here."""

from vftrace.mailbox import i40e, ice, igb, ixgbe
from vftrace.mailbox.driver import Drivers

DRIVERS: Drivers = {
    driver.number: driver for driver in (ixgbe.DRIVER, igb.DRIVER, i40e.DRIVER, ice.DRIVER)
}
"""Drivers by the number their events carry."""
