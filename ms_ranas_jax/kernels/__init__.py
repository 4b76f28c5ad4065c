"""Arrays to arrays, fast on each platform; no modules and no config."""
