"""`longpo plan`: FLOPs, memory per GPU and time of a training job before it runs. Imports nothing heavy."""
