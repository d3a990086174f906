"""Using a finished run or an artifact: loading it, optimizing it, scoring other rows, and predicting."""
