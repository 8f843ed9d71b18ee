"""What the server was started with; knows nothing of requests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from longcat_tune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the server was started with.

    Attributes:
        roots: resolved folders whose files may be read; the first is home, where all is written.
        host: the name or address to listen on.
        port: the port to listen on.
        token: what a visitor must show; needed where others than this machine can connect.
        command: how this tool is run as a subprocess; the words of a command follow.

    Raises:
        ConfigError: others could connect and there is no token.
    """

    roots: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8001
    token: str | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "longcat_tune")

    def __post_init__(self) -> None:
        if self.remote and not self.token:
            raise ConfigError(
                f"host ({self.host}) can be reached from other machines, which needs a token; give one, or "
                "listen on 127.0.0.1"
            )

    @property
    def remote(self) -> bool:
        """Whether other machines can connect."""
        return not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other can reach.

    Args:
        host: without port or brackets.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
