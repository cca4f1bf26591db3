"""The layer next to the machine: files, text, optional packages, processes, signals, devices."""
