"""Where commands run: on executors of NeMo-Run, and as Slurm jobs that outlive who has submitted them."""
