"""Checkpoints that can be trusted: written whole or not at all, verified before they are used, kept by rule, one writer at a time."""
