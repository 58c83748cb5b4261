"""Which sampler and which instants suit a trained model best: found by search, and kept with the run."""
