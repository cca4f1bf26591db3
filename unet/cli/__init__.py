"""The `unet` command."""
