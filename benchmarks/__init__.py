"""Benchmarks: every operation against what PyTorch offers for the same work."""
