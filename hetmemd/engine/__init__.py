"""Compares what should be with what is, and decides. The only room that knows all others."""
