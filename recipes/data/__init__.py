"""The data of the recipes: images, text and made-up classes."""
