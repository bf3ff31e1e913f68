"""Keys and their rules: every mistake of a config is found before anything expensive runs. Nothing is built here."""
