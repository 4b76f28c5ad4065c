"""Where images come from: data sets, their files, and what reads them."""
