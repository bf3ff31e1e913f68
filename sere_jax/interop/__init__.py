"""Names and array layouts of other people's checkpoints, and the files that hold them."""
