"""Installed into nnU-Net's folder of trainer variants; also what `nnUNet_extTrainer` may point to."""
