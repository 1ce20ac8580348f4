"""Run a plan of steps in order: finished ones are skipped, and the same command continues after any stop.

`steps.json` in the plan's output holds for each step that was started its settings, seconds and report. A step is not
run with other settings than it was started with, and not again behind the back of a finished step that has read what
it wrote: both are refused with one sentence. `--redo STEP` removes the outputs of that step and of those that read
them, directly or not, and makes them again.
"""

from .plan import Record, Records, Step, add_plan_options, planned, read_records, show_plan
from .run_plan import run_steps

__all__ = ["Record", "Records", "Step", "add_plan_options", "planned", "read_records", "run_steps", "show_plan"]
