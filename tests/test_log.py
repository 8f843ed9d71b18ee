"""The console shows our records and keeps quiet about other libraries' details."""

from __future__ import annotations

import subprocess
import sys

# Ctrl-C while torch is still being imported: what torch logs at exit then finds no level of its own set.
STOPPED_EARLY = """
import logging
from longcat_tune import log
log.set_up()
logging.getLogger("torch._subclasses.fake_tensor").info("FakeTensor cache stats:")
logging.getLogger("longcat_tune.runs").info("ours")
"""


def test_torch_tells_no_statistics_when_it_is_stopped_early() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_EARLY], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.split()[1:] == ["ours"]
