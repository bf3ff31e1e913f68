"""What a user starts: training, evaluation, export, extraction, tables, checks. Nothing imports a command but the programs."""
