"""The methods of attribution."""
