"""What an edit changes besides its attribute."""
