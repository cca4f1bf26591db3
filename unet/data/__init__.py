"""Image and mask files -> arrays -> samples."""
