"""Unsupervised anomaly detection in 3D brain MRI with masked convolutional transformer blocks, on MONAI."""

import lazy_loader

__version__ = "0.1.0"

# What __init__.pyi names is imported when it is asked for, so that the command line does not wait for PyTorch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
