"""Random access to encoded images, wherever they lie."""
