"""What can go wrong in a run is seen: numbers that are not finite, leaps of the loss, levels that learn nothing, samples that drift."""
