"""Programs that measure this project, run as `python -m benchmarks.FOLDER.PROGRAM`; see README.md.

Importing it makes `support`, which tests share, importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))
