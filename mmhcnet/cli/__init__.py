"""What the command-line tools share: config, schedule, errors, distributed set-up, trial."""
