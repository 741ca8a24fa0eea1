"""Models in folders and on the Hugging Face hub: weights, settings and model cards."""
