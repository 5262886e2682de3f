# SPDX-License-Identifier: MIT
"""`python -m vftrace`."""

import sys

from vftrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
