"""Time and memory of networks in every runtime, measured side by side."""
