"""Parts for MONAI's engines."""

from ssmctb_monai.engines.prepare_batch import PrepareBatchKeys

__all__ = ["PrepareBatchKeys"]
