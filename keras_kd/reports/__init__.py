"""What is shown: pages, figures, tables, numbers, event files and lines."""
