"""Which addresses count as this machine's own, and that others need a token."""

from __future__ import annotations

import pytest

from longcat_tune.errors import ConfigError
from longcat_tune.server.settings import Settings, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_address_needs_no_token(tmp_path, host):
    assert is_loopback(host)
    assert not Settings(roots=(tmp_path,), host=host).remote


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "gpu.lab", "localhost.evil.org", "", "127.1"]
)
def test_any_other_address_is_refused_without_a_token(tmp_path, host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="needs a token"):
        Settings(roots=(tmp_path,), host=host)
    with pytest.raises(ConfigError, match="needs a token"):
        Settings(roots=(tmp_path,), host=host, token="")
    assert Settings(roots=(tmp_path,), host=host, token="secret").remote
