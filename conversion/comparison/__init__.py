"""`longpo convert verify`: whether two directories hold the same model, whichever side each lies on."""
