"""What a Hugging Face model directory holds beside its weights, checked before a library reads it."""
