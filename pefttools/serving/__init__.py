"""An HTTP server for runs and artifacts: requests of many clients are computed together."""
