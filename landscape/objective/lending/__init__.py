"""The user's network with tensors of ours: what is taken, exchanged, and given back."""
