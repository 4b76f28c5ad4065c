"""Pictures of what was found and measured, and the page that shows them."""
