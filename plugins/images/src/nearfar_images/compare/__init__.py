"""Systems side by side on the user's own images: same encoder, same budget, same tuning, several seeds."""
