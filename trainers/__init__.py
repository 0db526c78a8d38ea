"""nnU-Net trainers: they choose data, transforms and losses; the mathematics is elsewhere."""
