"""The rooms behind `utils`: data, optimizer, checkpoints, plots. Nothing here imports `utils` or `model`."""
