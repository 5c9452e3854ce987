"""Hooks of MMEngine's runner."""
