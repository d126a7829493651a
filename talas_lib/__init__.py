"""talas: distil text-embedding models from cached sentence embeddings."""

__version__ = "0.1.0"
