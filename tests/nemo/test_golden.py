"""Twenty steps of a tiny run are committed as a curve that every change must reproduce.

A change that is meant to move the curve writes it anew, and says why in its commit message:

    LONGPO_WRITE_GOLDEN=1 python -m pytest tests/nemo/test_golden.py
"""

import pytest
from support.golden import assert_golden_curve

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_twenty_steps(workbench, workers, tmp_path):
    assert_golden_curve(workbench, workers, tmp_path)
