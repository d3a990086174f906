"""From files to batches: read, check, deduplicate and split rows, tokenise them once, and batch them by length."""
