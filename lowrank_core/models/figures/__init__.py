"""Figures of reports, each drawn by a module that is imported only then: matplotlib takes a second to load."""
