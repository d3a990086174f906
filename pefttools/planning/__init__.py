"""What training will take, found before weights are loaded: parameters and memory."""
