"""The reference model stack: the papers' models over the public operations."""
