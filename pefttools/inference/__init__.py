"""A finished run or an artifact at work: loaded, made fast, scored on other rows, and asked for predictions."""
