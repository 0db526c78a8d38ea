"""Installed into nnU-Net's folder of experiment planners."""
