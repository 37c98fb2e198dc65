"""Inferers."""

from ssmctb_monai.inferers.autocast import AutocastInferer

__all__ = ["AutocastInferer"]
