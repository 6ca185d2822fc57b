"""What may be added to the logits: the terms of a score, one file each."""
