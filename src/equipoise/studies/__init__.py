"""The declared comparisons, one file a system: the table of contents of the whole product."""
