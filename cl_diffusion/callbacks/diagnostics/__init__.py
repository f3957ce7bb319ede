"""What is measured as a run goes."""
