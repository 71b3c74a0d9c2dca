"""Examples: notebooks for another folder, and the page in which a trained network reads what you draw."""
