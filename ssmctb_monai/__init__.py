"""Unsupervised anomaly detection in 3D brain MRI with masked convolutional transformer blocks, on MONAI."""

__version__ = "0.1.0"
