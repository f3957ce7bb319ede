"""What runs have written, as one page to look at: ``page.write_report``."""
