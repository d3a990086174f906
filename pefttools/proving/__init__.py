"""Proofs of artifacts that other tools made: whether a merged model is its base with its adapter, and what differs."""
