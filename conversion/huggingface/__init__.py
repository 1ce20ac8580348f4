"""The Hugging Face side: a model directory's configuration, tensor files, and what travels with them."""
