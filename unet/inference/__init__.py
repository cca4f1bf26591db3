"""Checkpoint -> predictions: tiles, test-time augmentation, masks, GeoTIFFs, exported files."""
