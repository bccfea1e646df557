"""What to train and how: answers, recipes, adaptation to the GPU."""
