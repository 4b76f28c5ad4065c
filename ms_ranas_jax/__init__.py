"""Multi-scale resource-aware search of anytime networks in JAX."""
