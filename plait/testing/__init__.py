"""Helpers for tests of plait and of what is built on it."""
