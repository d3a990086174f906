"""Rows -> split, deduplicated, tokenised once, batched by length under a token budget."""
