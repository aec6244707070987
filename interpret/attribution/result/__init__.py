"""What an attribution gives back, and how it is shown and stored."""
