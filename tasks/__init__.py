"""One file per task, and the sample data sets in `data/`."""
