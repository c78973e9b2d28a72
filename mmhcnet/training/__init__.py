"""Training: resumable loops, tolerant data, hooks for bad steps and pre-emption."""
