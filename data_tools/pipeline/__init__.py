"""`longpo data run`: all stages from one file, through NeMo-Run executors."""
