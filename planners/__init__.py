"""Experiment planners: small CPU plans, two networks in one memory budget, whole-grid patches."""
