"""nnU-Net v2 trainers for images with hardly any annotations."""

from nnunet_synthtumour._version import __version__

__all__ = ["__version__"]
