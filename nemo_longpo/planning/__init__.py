"""What a training job costs before it runs: FLOPs, memory per GPU, time. Plain arithmetic, imports nothing heavy."""
