"""Where it runs: options of the runners, and the command line."""
