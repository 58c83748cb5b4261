"""Drawing from a trained run: the settings that say how, the model made ready by them, and samples kept as they come."""
