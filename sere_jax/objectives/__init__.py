"""Methods: each is an `Objective`, and `recipes` is the one table of them."""
