"""`unet train`: the loop and everything that a run writes."""
