"""Lets `python -m longcat_tune` be the command line."""

from __future__ import annotations

import sys

from longcat_tune.cli import main

if __name__ == "__main__":
    sys.exit(main())
