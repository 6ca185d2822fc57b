"""One small training per model of the stack, on real data: `python -m examples.NAME`."""
