"""Data sets: formats in, one index, batches out. Importing this package loads no torch."""
