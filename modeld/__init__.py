"""modeld: keeps one llama.cpp model loaded and switches it on request."""

__version__ = "0.1.0"
