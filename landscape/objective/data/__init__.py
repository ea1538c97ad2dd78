"""The examples of an objective: read once, kept on the device, split and weighed."""
