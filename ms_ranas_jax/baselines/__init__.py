"""Networks of others to compare with, built of the same parts."""
