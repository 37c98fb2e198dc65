"""Parts for MONAI's engines."""

from ssmctb_monai.engines.prepare_batch import PrepareBatchAnomaly

__all__ = ["PrepareBatchAnomaly"]
