"""modeld: keeps one llama.cpp model loaded and switches it on request."""

__version__ = "0.1.0"
__date__ = "2026-11-25"  # of this version: the day that manual pages carry; changed with it
