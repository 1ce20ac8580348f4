"""`longpo evolve`: rounds of data, training and evaluation at rising lengths, each from the model of the one before."""
