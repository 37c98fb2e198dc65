"""Networks, network blocks, and the insertion of blocks into networks."""

from ssmctb_monai.networks.insertion import insert_block, remove_blocks

__all__ = ["insert_block", "remove_blocks"]
