"""Show what shards hold: a summary in numbers, lines for the terminal, and an HTML page."""
