"""Work on numbered parts: sources, claims, atomic commits, resuming."""

from .parts import PartResult, PartsJob, Process, run_parts
from .progress import Kept, Progress, Tick, Usage
from .rows import Row, open_parts

__all__ = [
    "Kept", "PartResult", "PartsJob", "Process", "Progress", "Row", "Tick", "Usage", "open_parts", "run_parts",
]  # fmt: skip
