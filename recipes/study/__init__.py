"""What the recipes share, from the options to the table."""
