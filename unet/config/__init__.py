"""The settings: their types, how they are read, and which go together. Imports no torch."""
