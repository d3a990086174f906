"""Plain torch: nothing here imports anything else of ours."""
