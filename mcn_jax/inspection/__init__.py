"""Looking into trained networks: what checkpoints and model files hold, as numbers and pictures."""
