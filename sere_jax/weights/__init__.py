"""Any checkpoint as trees of NumPy arrays, and what is made of them."""
