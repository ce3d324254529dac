"""What stages share about the stores of logits: plans, identities, reading, and mtkd cache."""
