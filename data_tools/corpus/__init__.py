"""Documents from files, and chunks of documents."""
