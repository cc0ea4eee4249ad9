"""Which device a name means."""

import pytest

from diffcli.errors import ConfigError
from diffcli.runtime.device import resolve_device


@pytest.mark.parametrize("name", ["cuda:999", "cuda:200", "cuda:-1", "cuda:99999999999999999999", "meta", ""])
def test_devices_that_are_not_there(name: str) -> None:
    """PyTorch reads cuda:999 as cuda:-25."""
    with pytest.raises(ConfigError, match="is n"):
        resolve_device(name)
