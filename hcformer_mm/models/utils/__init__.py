"""Shared by heads: mask decoding, post-processing, recording of clusters."""
