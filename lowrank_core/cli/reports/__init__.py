"""Reports for the terminal and figures of them."""
