"""What makes an answer or an instruction useless for training: pure functions over texts."""
