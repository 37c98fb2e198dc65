from .losses import DRAEMLoss as DRAEMLoss
from .losses import SelfSupervisedLoss as SelfSupervisedLoss
from .networks.blocks import SSMCTB as SSMCTB
from .networks.blocks import SSPCAB as SSPCAB
from .networks.blocks import MaskedConvolution as MaskedConvolution
from .networks.blocks import from_released as from_released
from .networks.nets import DRAEM as DRAEM

__all__: list[str]
__version__: str
