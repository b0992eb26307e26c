"""Streaming SBP: Synthetic Bootstrapped Pretraining (arXiv 2509.15248) online, in one run."""

__version__ = "0.1.0"
