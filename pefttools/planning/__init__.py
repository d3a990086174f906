"""The plan of a training run, made before weights are loaded: parameters and memory."""
