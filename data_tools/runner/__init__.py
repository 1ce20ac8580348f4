"""Work on numbered parts: sources, claims, atomic commits, resuming."""

from .parts import PartResult, PartsJob, Process, run_parts
from .progress import Kept, Progress, Tick, Usage
from .rows import REPAIR, PartLimits, Row, is_given, open_parts, read_stage_settings

__all__ = [
    "REPAIR", "Kept", "PartLimits", "PartResult", "PartsJob", "Process", "Progress", "Row", "Tick", "Usage",
    "is_given", "open_parts", "read_stage_settings", "run_parts",
]  # fmt: skip
