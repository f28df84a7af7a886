"""Watching a run: listeners of its events. Nothing here imports torch."""
