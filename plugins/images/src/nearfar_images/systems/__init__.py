"""One module a system: CARD says what it is, RECIPES how to train it. Importing them loads no torch."""
