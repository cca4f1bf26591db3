"""`unet check` and `unet init`: what a data set holds."""
