"""The audit log that agent and hub share: entries, tree, checkpoints, witnesses, and an offline verifier."""
