"""What a run leaves on disk: where its checkpoints lie, whether they are whole, and what in them may be trusted."""
