"""RULER (arXiv 2404.06654): thirteen synthetic tasks, made to a length with the tokenizer of the model."""
