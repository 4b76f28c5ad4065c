"""Graph hypernetworks: params for every genotype of a space."""
