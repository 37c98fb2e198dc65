"""Data: BRATS folders, patient-level datalists, readers and the demo data set."""
