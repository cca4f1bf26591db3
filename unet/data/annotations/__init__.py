"""Annotations of other tools: read as masks, and outlines of masks written for them."""
