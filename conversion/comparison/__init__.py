"""`longpo convert verify`: whether two directories, each of either side, hold the same model."""
