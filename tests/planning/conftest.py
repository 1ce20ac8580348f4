"""Plans of tests read no rates that were measured on the machine that runs them."""

import pytest


@pytest.fixture(autouse=True)
def no_rates_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
