"""What lies between the project and the machine: files, optional packages, processes, signals, devices."""
