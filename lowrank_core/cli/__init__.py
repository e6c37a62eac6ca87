"""The command line: one verb a question, and nothing computed that the library does not offer."""
