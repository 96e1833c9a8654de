"""Systems on sentences: a card, recipes and a demonstration each. Loads no torch."""
