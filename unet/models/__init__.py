"""Networks, layers and losses: ordinary PyTorch, nothing of files or config."""
