"""Conversations as token ids: chat templates taken apart, tokenizers' rules, the wording of prompts."""
