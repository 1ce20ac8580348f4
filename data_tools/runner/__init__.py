"""Work on numbered parts: sources, claims, atomic commits, resuming."""
