"""A file that cannot be used, as one error that a scan turns into one line of its report.

Knows nothing of why files are refused; whoever finds the reason also names the remedy.
"""

from __future__ import annotations

from pathlib import Path

from longcat_tune.errors import DataError
from longcat_tune.types import Refusal

REPLACE = "replace the file or take it out of the folder"
"""The remedy for a file that nobody can read."""
CHANGED = "it changed after it was planned: start again"
"""The remedy for a file that is not what was planned."""


class UnusableFileError(DataError):
    """One clip, image or caption file that must be changed or taken out.

    Attributes:
        path: the file.
        reason: what is wrong with it; continues a sentence that begins with the path.
        remedy: what to do about it.
    """

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path} {reason}; {remedy}")
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def refusal(self, dataset_id: str) -> Refusal:
        """The same as a line of a dataset's report."""
        return Refusal(dataset_id=dataset_id, path=self.path, reason=self.reason, remedy=self.remedy)
