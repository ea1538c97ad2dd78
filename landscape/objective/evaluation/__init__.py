"""The loss of one batch: how a network is run, what is checked of it, and what makes that fast."""
