"""What an evaluation came to: estimates with their uncertainty, the paper's table with ours in it, files, a verdict."""
