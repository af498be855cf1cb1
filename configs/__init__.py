"""Ready-made configs; ``lightning fit --config configs/digits/redrl.yaml``."""
