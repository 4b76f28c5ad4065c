"""How a network is trained: augmentation, losses, the loop, prediction."""
