"""The verbs of the command line: options, and one call each."""
