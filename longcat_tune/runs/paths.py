"""Where a path of the config is: beside the config file, else in the working folder."""

from __future__ import annotations

from pathlib import Path

from longcat_tune.errors import ConfigError


def existing_path(given: Path, *, key: str, config_dir: Path) -> Path:
    """Find what a key names.

    Args:
        given: as in the config.
        key: for the message.
        config_dir: where a relative path is looked for first; then in the working folder.

    Raises:
        ConfigError: it is in neither place.
    """
    places = dict.fromkeys((config_dir / given, given))
    for path in places:
        if path.exists():
            return path
    tried = " and ".join(str(path) for path in places)
    raise ConfigError(f"{key} ({given}) is not there (tried {tried}); correct the path")
