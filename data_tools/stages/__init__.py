"""The data stages, one file each: what a stage does with the rows of a part."""
