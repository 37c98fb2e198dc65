"""Parts for MONAI's engines."""

from ssmctb_monai.engines.adversarial import Adversary, make_trainer
from ssmctb_monai.engines.prepare_batch import PrepareBatchKeys

__all__ = ["Adversary", "PrepareBatchKeys", "make_trainer"]
