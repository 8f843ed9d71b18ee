"""The captions of one file, by the dataset's strategy; a missing one is an error, never an empty prompt.

Knows where captions are written, nothing of prompts' cleaning or encoding.
"""

from __future__ import annotations

from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.refusals import UnusableFileError

OTHER_STRATEGIES = 'or set caption_strategy to "filename", "instanceprompt" or null'
EMPTY_PROMPT = ""


def captions_of(path: Path, entry: DatasetEntry) -> tuple[str, ...]:
    """Find the captions of a clip or image; training draws one of them each time.

    Args:
        path: the clip or image.
        entry: its dataset; `caption_strategy` null means the empty prompt.

    Raises:
        UnusableFileError: there is no caption where the strategy looks for it.
    """
    match entry.caption_strategy:
        case None:
            return (EMPTY_PROMPT,)
        case "instanceprompt":
            assert entry.instance_prompt is not None
            return (entry.instance_prompt,)
        case "filename":
            return (_name_as_words(path),)
        case "textfile":
            return _text_file_captions(path, split=not entry.disable_multiline_split)
        case later:
            raise AssertionError(f"the schema lets {later} pass")


def _name_as_words(path: Path) -> str:
    words = " ".join(path.stem.replace("_", " ").split())
    if not words:
        raise UnusableFileError(path, "has no words in its name", "rename it to what it shows")
    return words


def _text_file_captions(path: Path, *, split: bool) -> tuple[str, ...]:
    text_path = path.with_suffix(".txt")
    try:
        text = text_path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        reason = f"has no caption: {text_path} does not exist"
        raise UnusableFileError(path, reason, f"write its caption there, {OTHER_STRATEGIES}") from error
    except UnicodeDecodeError as error:
        reason = f"has a caption that is not UTF-8: {text_path}"
        raise UnusableFileError(path, reason, "save the text as UTF-8") from error
    except OSError as error:
        reason = f"has a caption that cannot be read: {text_path} ({error.strerror})"
        raise UnusableFileError(path, reason, "make it a readable text file") from error
    units = text.split("\n") if split else [text]
    captions = tuple(unit.strip() for unit in units if unit.strip())
    if not captions:
        reason = f"has no caption: {text_path} is empty"
        raise UnusableFileError(path, reason, f"write its caption there, {OTHER_STRATEGIES}")
    return captions
