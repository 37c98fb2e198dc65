"""Parts for MONAI's engines."""

from ssmctb_monai.engines.prepare_batch import PrepareBatchAnomaly, PrepareBatchReconstruction

__all__ = ["PrepareBatchAnomaly", "PrepareBatchReconstruction"]
