"""One file a stage: what it does with the rows of a part."""
